"""Plain against encryption-aware accuracy on real faces at native size, four seeds, on a GPU."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import measuring
import places
import report
import scale as scales
import summaries
from systems import CLOUD, SYSTEMS

from facemix_jax import _runtime, data, fitting, runs
from facemix_jax._validate import one_of
from facemix_jax.results import Column, ResultTable, Row

ROWS = (CLOUD, *(name for name in SYSTEMS if name.startswith("FaceMix")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """ResNet-18 (width 64) on all images of a CelebA folder at 218x178: plain, FaceMix (M = 8).

    Command: ``python experiments/accuracy_gpu.py --data-dir CELEBA``, or ``--scale smoke``, which
    needs no files. A second call goes on where one stopped.

    Run time: five minutes on one NVIDIA H200, of which three are training and one compilation.

    Expected: plain 89.4%, FaceMix .1, .6 and .8 points above it with N_pre = 1, 2, 3.

    Attributes:
        scale: smoke or gpu.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data set's default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: of ``ROWS``.
        seeds: trained at the same time.
        output: JSON file; None for ``results/accuracy_SCALE.json``.
    """

    scale: Literal["smoke", "gpu"] = "gpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    rows: tuple[str, ...] = ROWS
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    output: Path | None = None


def native(name: str) -> scales.Scale:
    """The scale at CelebA's native size; ``smoke`` as it is."""
    scale = scales.SCALES[name]
    if scale.drawn:
        return scale
    train = dataclasses.replace(
        scale.train, num_epochs=24, learning_rate=3e-3, log_every=100, checkpoint_every=1000
    )
    return dataclasses.replace(scale, image_size=(218, 178), train=train)


def main(config: Config) -> None:
    """Trains and scores what the JSON file lacks, then attacks one network of each row."""
    for row in config.rows:
        one_of(ROWS, row=row)
    scale = native(config.scale)
    place = places.place(config, runs_of="accuracy")
    cells = report.Cells(
        config.output or scales.output("accuracy", config.scale),
        config,
        images=places.images(scale, place),
        chooses=("rows", "seeds"),
        summarize=lambda cells: summarize(cells, scale),
    )
    for part, seeds in (("utility", config.seeds), ("separation", config.seeds[:1])):
        for row in config.rows:
            missing = [s for s in seeds if not cells.has(row=row, part=part, seed=s)]
            if not missing:
                continue
            found, speed = trained(row, scale, place, missing)
            for seed, run in zip(missing, found, strict=True):
                what = {"row": row, "part": part, "seed": seed}
                sizes = {f"{s}_images": len(run.source.splits[s]) for s in ("train", "test")}
                cells.add(
                    {**what, **measuring.PARTS[part](run, scale, place, seed), **sizes, **speed}
                )
    cells.save()


def trained(
    row: str, scale: scales.Scale, place: places.Place, seeds: Sequence[int]
) -> tuple[list[runs.Run], dict[str, int]]:
    """Trains what is missing of a row, all seeds in one process; with images/s if any was."""
    configs = [measuring.run_config(SYSTEMS[row], scale, place, seed) for seed in seeds]
    source = data.load_source(configs[0].data)
    options = fitting.Options(show_progress=False)
    states = fitting.fit_together(
        configs,
        [measuring.workdir(row, place, seed) for seed in seeds],
        source=source,
        method="loop",  # at this size one run fills the device
        options=options,
    )
    found = [runs.from_state(c, source, s) for c, s in zip(configs, states, strict=True)]
    meter = options.meter
    speed = {"images_per_second": round(meter.images / meter.seconds)} if meter.seconds else {}
    return found, speed


def summarize(cells: Sequence[Mapping[str, Any]], scale: scales.Scale) -> report.Summary:
    """Accuracy and its difference to plain, seed by seed, with what the cloud finds beside it."""
    if not cells:
        return (), ()
    attacked = any(cell["part"] == "separation" for cell in cells)
    columns = (
        Column(name="test acc.", format="percent"),
        Column(name="test minus cloud, points", format="fixed2"),
        Column(name="balanced acc.", format="percent"),
        *(summaries.ACTIVATION_COLUMNS if attacked else ()),
    )
    rows = [
        Row(
            label=name,
            cells=(
                *summaries.accuracy(cells, name, SYSTEMS[name].table2[1], SYSTEMS[CLOUD].table2[1]),
                summaries.measured(cells, name, "utility", "balanced_accuracy"),
                *(summaries.activations(cells, name) if attacked else ()),
            ),
        )
        for name in ROWS
    ]
    first = cells[0]
    table = ResultTable(
        title=f"Native size: {summaries.images(scale, 'CelebA')}, {summaries.size(scale)}, "
        f"{scale.compute_dtype}",
        columns=columns,
        rows=(*rows, summaries.majority(cells, columns)),
        note=f"{first['train_images']:,} training and {first['test_images']:,} test images. "
        + summaries.DIFFERENCES
        + (f" {summaries.TRUTH}" if attacked else ""),
    )
    return (table,), ()


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
