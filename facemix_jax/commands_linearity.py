"""``facemix linearity``: where, why and by how much unmixing is not exact."""

import csv
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from facemix_jax import charts, data, defenses, gathering, mixing, models, output, runs
from facemix_jax._arguments import OptionalFolder
from facemix_jax._files import write_atomically
from facemix_jax._types import RngKey
from facemix_jax._validate import FacemixError, UsageError, in_range, one_of, positive
from facemix_jax.commands import Output, check_unused, read_weights
from facemix_jax.linearity import study
from facemix_jax.models import ModelConfig, from_torch
from facemix_jax.output import NOTES
from facemix_jax.runs import Run, RunConfig

_GROUP_SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linearity(Output):
    """How far unmixing is from exact: end to end, layer by layer, by cause, and from rounding.

    Of a work directory, of imported weights, or of a fresh network.

    Example: facemix linearity --workdir runs/m8 --num-keys 16 --out linearity

    Example: facemix linearity --weights resnet18.npz --width 64 --cut 2
    """

    workdir: OptionalFolder = None
    """Of a training run; without it, a network is measured on drawn faces."""
    weights: Path | None = None
    """An .npz of torchvision's state_dict; without it and --workdir, weights are freshly drawn."""
    model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig(width=16)
    group_size: int | None = None
    """Images mixed together; the run's own, or 8 where it mixed none."""
    family: str | None = None
    """Of mixing matrices; the run's own, or haar. conditioned has the run's condition number."""
    num_keys: int = 8
    """Keys measured."""
    num_images: int = 64
    """Test images, rounded down to whole groups."""
    out: OptionalFolder = None
    """Folder for tables (CSV) and figures (PNG); also measures error against M and dtype, with the
    same family and as many keys."""
    data_dir: str | None = None
    """Where the images are now; by default where they were in training."""
    seed: int = 0
    """Of the keys, and of a fresh network."""

    def run(self) -> None:
        """Runs the command."""
        positive(num_keys=self.num_keys, num_images=self.num_images)
        if self.group_size is not None:
            positive(group_size=self.group_size)
            if self.group_size == 1:
                raise UsageError(
                    "group_size is 1, but one image is not mixed. Give a --group-size of 2 or more."
                )
        in_range(0, 2**32 - 1, seed=self.seed)
        if self.family is not None:
            one_of(mixing.FAMILIES, family=self.family)
            if self.group_size is not None:  # the family's own refusal, before anything is loaded
                group_size, family = self.group_size, mixing.FAMILIES[self.family]
                jax.eval_shape(lambda k: family(k, 1, group_size), jax.random.key(self.seed))
        if self.workdir is not None and self.weights is not None:
            raise UsageError(
                "--workdir and --weights are both given, but one network is measured. "
                "Leave one of them out."
            )
        if self.workdir is not None:
            check_unused(self.model, Linearity.model, "the network is that of --workdir")
        else:
            check_unused(self, Linearity(), "drawn faces are measured", ("data_dir",))
        output.check_apart({"--json": self.json}, [self.weights])
        if self.out is not None:
            gathering.check_folder(self.out)
        rng_key = jax.random.key(self.seed)
        part = self._part(rng_key)
        own = part.defense.group_size  # 1 where training mixed nothing
        group_size = self.group_size or (own if own > 1 else _GROUP_SIZE)
        available = len(part.source.splits["test"])
        num_images = min(self.num_images, available)
        num_images -= num_images % group_size
        if not num_images:
            limit, remedy = (
                (f"num_images is {self.num_images}", "Use more images")
                if self.num_images <= available
                else (f"the test split has {available} images", "Use a --data-dir with more")
            )
            raise UsageError(
                f"{limit}, fewer than one group of {group_size}. {remedy} or a smaller "
                f"--group-size."
            )
        trained = part.config.defense
        name = self.family or trained.family
        family = (
            mixing.conditioned(trained.condition)
            if name == "conditioned"
            else mixing.FAMILIES[name]
        )
        jax.eval_shape(lambda k: family(k, 1, group_size), rng_key)  # a run's own refuses, too
        batch = next(iter(data.eval_batches(part.source, split="test", batch_size=num_images)))
        activations = part.model.pre(part.variables["pre"], data.normalize(batch.images))
        NOTES.print("End to end, layer by layer, by cause ...")
        result = {
            "network": part.model.spec.name,
            "cut": part.model.spec.cut,
            "trained_steps": part.step,
            "group_size": group_size,
            "family": name,
            "images": num_images,
            "keys": self.num_keys,
            **study.examine(
                part.model,
                part.variables,
                activations,
                rng_key=rng_key,
                group_size=group_size,
                num_keys=self.num_keys,
                family=family,
            ),
        }
        if self.out is not None:
            NOTES.print("Against M and dtype ...")
            result["sweep"] = study.sweep(
                functools.partial(_in_dtype, part),
                part.variables["main"],
                activations,
                rng_key=rng_key,
                group_sizes=_sweep_sizes(num_images, group_size),
                num_keys=self.num_keys,
                family=family,
            )
            write_files(self.out, result)
        output.emit(self.json, result, *_tables(result))

    def _part(self, rng_key: RngKey) -> Run:
        if self.workdir is not None:
            part = runs.load(self.workdir, data_dir=self.data_dir)
            # Statistics of clean inference are none of the protected network's.
            main = {k: v for k, v in part.variables["main"].items() if k != "clean_stats"}
            return part._replace(variables={**part.variables, "main": main})
        config = RunConfig(
            model=self.model,
            data=data.DataConfig(train_examples=64, test_examples=self.num_images),
        )
        source = data.load_source(config.data)
        model = runs.build_model(config, source)
        variables = model.init(rng_key)
        if self.weights is not None:
            variables = from_torch(read_weights(self.weights), variables, keep_head=True)
        return Run(
            config,
            source,
            model,
            defenses.build(config.defense, tiles=model.spec.tiles),
            variables,
            step=0,
        )


def _sweep_sizes(num_images: int, group_size: int) -> list[int]:
    """Powers of two that divide the images, and the one size that surely does."""
    return sorted({group_size} | {2**k for k in range(1, 8) if num_images % 2**k == 0})


def _in_dtype(part: Run, dtype: Any) -> models.SplitModel:
    return models.build(
        part.config.model,
        image_size=part.source.image_size,
        num_attributes=len(part.source.attribute_names),
        dtype=dtype,
    )


def _tables(result: dict[str, Any]) -> list[Any]:
    title = f"relative unmix error, M = {result['group_size']}, {result['images']} images"
    header = (f"mean of {result['keys']} keys", "over keys", "over inputs")
    ends = [
        (f"of the {name}", *(_cell(error[k]) for k in _END_TO_END))
        for name, error in result["relative_unmix_error"].items()
    ]
    if result["nonnegative_floor"] is not None:
        floor = _cell(result["nonnegative_floor"])
        ends.append(("of the features, at least (orthogonal families)", floor, "", ""))
    causes = result["causes"]
    rows = [
        (name, *(_cell(causes[k]["mean"][i]) for k in ("alone", "without", "shares")))
        for i, name in enumerate(causes["names"])
    ]
    interaction, share = (_cell(causes[k]["mean"]) for k in ("interaction", "interaction_share"))
    rows.append(("interaction", interaction, "", share))
    rest = "rounding and what is unknown" if causes["unknown"] else "rounding"
    rows.append((rest, _cell(causes["rounding"]["mean"], ".1e"), "", ""))
    by_cause = output.table("cause", ("alone", "without it", "share of the error"), rows)
    if causes["unknown"]:
        by_cause.caption = _UNKNOWN
    layers = result["layers"]
    parts = [
        (
            name,
            *(_cell(layers["pairs"]["mean"][start][i]) for start in (i, 0)),
            *(_cell(layers[k]["mean"][i]) for k in ("made", "shares")),
        )
        for i, name in enumerate(layers["names"])
    ]
    return [
        output.table(title, header, ends),
        by_cause,
        output.table("layer", ("by itself", "up to here", "adds at the end", "share"), parts),
    ]


_UNKNOWN = (
    "The last line is far above rounding: operations that are none of these are at work too, in "
    "every line. Write activations and pools as modules of facemix_jax.models.operations, such as "
    "Relu() for nn.relu."
)

_END_TO_END = ("mean", "standard_deviation", "standard_deviation_over_inputs")


def _cell(value: float | None, form: str = ".4f") -> str:
    """Empty where there is no number, as of a share of no error at all."""
    return "" if value is None else format(value, form)


def write_files(folder: Path, result: dict[str, Any]) -> None:
    """Writes ``end_to_end``, ``layers``, ``causes`` and ``sweep`` as CSV, the last three as PNG.

    Args:
        folder: made where it is missing.
        result: of ``study.examine`` and, under ``"sweep"``, of ``study.sweep``.

    Raises:
        FacemixError: the folder cannot be written.
    """
    layers, causes = result["layers"], result["causes"]
    names = layers["names"]
    title = f"{result['network']}, cut {result['cut']}, {result['trained_steps']} training steps"
    with_size = f"{title}, M = {result['group_size']}"
    files: dict[str, str | bytes] = {
        "end_to_end.csv": _csv(
            ("read", "key", "relative_unmix_error"),
            [
                (name, index, value)
                for name, error in result["relative_unmix_error"].items()
                for index, value in enumerate(error["per_key"])
            ],
        ),
        "layers.csv": _csv(
            ("mixed_before", "unmixed_after", "mean", "standard_deviation"),
            [
                (names[i], names[j], *(layers["pairs"][k][i][j] for k in _END_TO_END[:2]))
                for i in range(len(names))
                for j in range(i, len(names))
            ],
        ),
        "causes.csv": _csv(
            ("cause", "alone", "without", "share"),
            [
                (name, *(causes[k]["mean"][i] for k in ("alone", "without", "shares")))
                for i, name in enumerate(causes["names"])
            ],
        ),
        "sweep.csv": _csv(
            _SWEEP_COLUMNS, [[row.get(c, "") for c in _SWEEP_COLUMNS] for row in result["sweep"]]
        ),
        "layers.png": charts.heat_map(
            np.array(layers["pairs"]["mean"], float), names, title=with_size
        ),
        "causes.png": cause_bars(causes, title=with_size),
        "sweep.png": sweep_lines(result["sweep"], title=title),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise FacemixError(
            f"{folder} cannot be written: {error}. Free space, or choose another --out."
        ) from error


_SWEEP_COLUMNS = (
    *("main", "dtype", "precision", "group_size"),
    *("mean", "standard_deviation", "bound", "unavailable"),
)


def cause_bars(causes: dict[str, Any], *, title: str) -> bytes:
    """A PNG: each cause alone and the rest without it, between the total and what is left."""
    count = len(causes["names"])
    names = [*causes["names"], "total", "interaction", "rounding"]
    series = {}
    for label, key in (("only this", "alone"), ("all but this", "without")):
        heights, deviations = (
            [*causes[key][k], *[causes[n][k] if key == "alone" else np.nan for n in names[count:]]]
            for k in ("mean", "standard_deviation")
        )
        series[label] = (np.array(heights, float), np.array(deviations, float))
    return charts.bars(names, series, title=title)


def sweep_lines(rows: Sequence[dict[str, Any]], *, title: str) -> bytes:
    """A PNG: error against M, a colour per dtype, with the bound of the linear twin."""
    curves = []
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    for main, style, value in (
        ("network", "--", "mean"),
        ("linear twin", "o-", "mean"),
        ("linear twin", ":", "bound"),
    ):
        for colour, dtype in enumerate(dtypes):
            chosen = [r for r in rows if r["main"] == main and r["dtype"] == dtype and r["mean"]]
            if chosen:
                label = f"{dtype}, {'bound' if value == 'bound' else main}"
                sizes = [r["group_size"] for r in chosen]
                curves.append(charts.Line(label, sizes, [r[value] for r in chosen], style, colour))
    return charts.lines(curves, title=title, x_label="group size M")


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()
