"""Work directories as a table of results and charts of their training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facemix_jax import results, runs, scores
from facemix_jax._validate import UsageError
from facemix_jax.records import read_records
from facemix_jax.results import Chart, Column, Curve, ResultTable, Row, Value
from facemix_jax.run_images import differences

_POINTS = 60
"""Of a training curve; longer ones are averaged piece by piece."""

_NAMED = {"network", "cut", "width", "defense", "group_size", "image_noise_variance", "blur_size"}
"""What every label says."""

ATTACKER = "strongest attack"
IN_SHORT = ("accuracy, clean", "accuracy, protected", "no attack", ATTACKER, "owner")
"""What a terminal has room for."""


class Scored(NamedTuple):
    """A run and its scores; see ``scores.scores``."""

    workdir: Path
    scores: Mapping[str, Any]


class Found(NamedTuple):
    """Work directories.

    Attributes:
        steps: work directory to the steps done.
        skipped: one without a checkpoint to the reason why it was left out.
    """

    steps: dict[Path, int]
    skipped: dict[Path, str]


def find(folders: Sequence[Path]) -> Found:
    """The folders themselves, or all work directories that they hold and that have a checkpoint.

    Raises:
        UsageError: a folder neither is a work directory nor holds one, or nothing is left.
        FacemixError: a configuration cannot be read.
    """
    steps: dict[Path, int] = {}
    skipped: dict[Path, str] = {}
    seen: set[Path] = set()
    for folder in folders:
        named = (folder / "config.json").exists()
        inside = [folder] if named else sorted(p.parent for p in folder.glob("*/config.json"))
        if not inside:
            what = "holds no run" if folder.is_dir() else "is not there"
            raise UsageError(
                f"{folder} {what}: there is no config.json. Give the --workdir of a "
                f"'facemix train' run, or a folder of such."
            )
        for workdir in inside:
            try:
                step = scores.newest_step(workdir)
            except UsageError as error:
                if named:
                    raise
                skipped[workdir] = str(error)
                continue
            if workdir.resolve() not in seen:
                seen.add(workdir.resolve())
                steps[workdir] = step
    if skipped and not steps:
        first, *more = skipped.values()
        raise UsageError(first + f" Nor can the {len(more)} other runs be used." * bool(more))
    return Found(steps, skipped)


def check_distinct(steps: Mapping[Path, int]) -> None:
    """Raises ``UsageError`` where two work directories hold the same run: no two seeds.

    Args:
        steps: work directory to the steps done.
    """
    seen: dict[str, list[Path]] = {}
    for workdir, step in steps.items():
        what = json.dumps([runs.essential(runs.read_config(workdir)), step], sort_keys=True)
        for other in seen.setdefault(what, []):
            if _same_images(workdir, other):
                raise UsageError(
                    f"{other} and {workdir} hold the same run, which would pass for two seeds. "
                    f"Leave one out."
                )
        seen[what].append(workdir)


def summarize(scored: Sequence[Scored]) -> tuple[list[ResultTable], list[Chart]]:
    """Runs that differ in their seed only become one row, averaged with intervals."""
    groups = _groups(scored)
    labels = _labels([members[0] for members in groups])
    sections = [
        ("What runs do, and what the cloud learns", _COLUMNS, lambda run: True),
        ("Faces from what is sent", _FACES, lambda run: run.scores.get("faces") is not None),
    ]
    tables = []
    for title, columns, has in sections:
        rows = tuple(
            Row(label=label, cells=tuple(read(members) for _, read in columns))
            for label, members in zip(labels, groups, strict=True)
            if has(members[0])
        )
        if rows:
            tables.append(
                ResultTable(
                    title=f"{title}: {_images(scored)}",
                    columns=tuple(column for column, _ in columns),
                    rows=rows,
                    note=_note(scored) if columns is _COLUMNS else _FACES_NOTE,
                )
            )
    return tables, _charts(labels, groups)


Read = Callable[[Sequence[Scored]], tuple[Value, ...]]


def _mean(*path: str | int) -> Read:
    def read(members: Sequence[Scored]) -> tuple[Value, ...]:
        found: list[Any] = [run.scores for run in members]
        for name in path:
            if any(isinstance(each, Mapping) and name not in each for each in found):
                return ()
            found = [each[name] for each in found]
        return (results.mean_over_seeds(found),)

    return read


def _first(*readers: Read) -> Read:
    """The first that there is."""
    return lambda members: next((found for read in readers if (found := read(members))), ())


def _seeds(members: Sequence[Scored]) -> tuple[Value, ...]:
    seeds = sorted(runs.read_config(run.workdir).train.seed for run in members)
    return (Value(value=", ".join(map(str, seeds)), mark="derived"),)


def _steps(members: Sequence[Scored]) -> tuple[Value, ...]:
    return (Value(value=members[0].scores["step"], mark="derived"),)


def _strongest(name: str) -> Read:
    """A figure of the strongest attack; where nothing is protected it follows without one."""

    def read(members: Sequence[Scored]) -> tuple[Value, ...]:
        (found,) = _mean("strongest", name)(members)
        return (found,) if _attacked(members) else (Value(value=found.value, mark="derived"),)

    return read


def _attacked(members: Sequence[Scored]) -> bool:
    return runs.read_config(members[0].workdir).defense.defense != "none"


def _attack(members: Sequence[Scored]) -> tuple[Value, ...]:
    names = sorted({run.scores["strongest"]["attack"] for run in members})
    return (Value(value=", ".join(names), mark="measured" if _attacked(members) else "derived"),)


def _shares(name: str, *readers: Read) -> tuple[Column, Read]:
    return Column(name=name, format="percent"), _first(*readers)


def _figure(name: str, *path: str) -> tuple[Column, Read]:
    return Column(name=name, format="fixed3"), _mean(*path)


_COLUMNS: tuple[tuple[Column, Read], ...] = (
    (Column(name="seeds"), _seeds),
    (Column(name="steps", format="integer"), _steps),
    _shares("accuracy, clean", _mean("clean", "accuracy")),
    _shares("accuracy, protected", _mean("protected", "accuracy")),
    _shares(
        "balanced accuracy",
        _mean("protected", "balanced_accuracy"),
        _mean("clean", "balanced_accuracy"),
    ),
    _shares("always the more frequent answer", _mean("clean", "majority_accuracy")),
    (Column(name="no attack", format="fixed3"), _strongest("floor")),
    (Column(name=ATTACKER, format="fixed3"), _strongest("value")),
    (Column(name="owner", format="fixed3"), _strongest("owner")),
    (Column(name="key advantage", format="fixed3"), _strongest("key_advantage")),
    (Column(name="reached by"), _attack),
)
_FACES: tuple[tuple[Column, Read], ...] = (
    _figure("a random face", "faces", "chance"),
    _figure("the mean face", "faces", "floor"),
    (Column(name="Pix2Pix", format="fixed3", strongest="strongest"), _mean("faces", "value")),
    _figure("strongest", "faces", "strongest"),
    _figure("owner", "faces", "owner"),
)
_FACES_NOTE = (
    "Minus the mean squared error of faces in [-1, 1]; 0 is perfect. Strongest: the better of "
    "Pix2Pix and, where images themselves are sent, ridge regression. Without a key the owner sees "
    "what the attacker sees."
)


def _note(scored: Sequence[Scored]) -> str:
    """What columns mean, and what could not run."""
    reasons = {
        f"{name} was left out for {run.workdir.name}: {reason}"
        for run in scored
        for name, reason in run.scores.get("skipped", {}).items()
        if run.scores.get("faces") is None  # without a key there is nothing to separate
    }
    return " ".join(
        [
            "Attacks: mean matched |correlation| of what they recover with the activations at the "
            "cut, 1 is all; no attack: of what is sent; owner: of what the owner of the key "
            "recovers; key advantage: owner minus attack, what the secret is worth. Accuracy over "
            "all attributes; balanced as the network is used, 50% for always the more frequent "
            "answer (more where the images lack one of the two).",
            *sorted(reasons),
        ]
    )


def _groups(scored: Sequence[Scored]) -> list[list[Scored]]:
    found: dict[str, list[list[Scored]]] = {}
    for run in scored:
        values = runs.essential(runs.read_config(run.workdir))
        del values["train"]["seed"]
        kind = json.dumps([values, run.scores["step"], run.scores["split"]], sort_keys=True)
        groups = found.setdefault(kind, [])
        for group in groups:
            if all(_same_images(run.workdir, other.workdir) for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    return [group for groups in found.values() for group in groups]


def _same_images(one: Path, other: Path) -> bool:
    """Whether images and initial weights of two runs are the same, as far as both kept them."""
    first, second = runs.read_images(one), runs.read_images(other)
    if first is None or second is None:
        return True
    weights = "initial_weights"
    shared = {name: value for name, value in first.items() if name in second and name != weights}
    return first.get(weights) == second.get(weights) and not differences(shared, second, "images")


def _labels(firsts: Sequence[Scored]) -> list[str]:
    """Network, defence, what is not the default of them, and in what else the runs differ.

    No two are the same.
    """
    configs = [runs.essential(runs.read_config(run.workdir)) for run in firsts]
    default = runs.essential(runs.RunConfig())
    labels = []
    for config in configs:
        defense = config["defense"]["defense"]  # registered ones go by their names
        parts = [
            f"{config['model']['network']}, width {config['model']['width']}, "
            f"cut {config['model']['cut']}",
            _DEFENSES.get(defense, defense).format(**config["defense"]),
        ]
        for part, values in config.items():
            for name, value in values.items():
                own = part in ("model", "defense") and value != default[part][name]
                varies = any(other[part][name] != value for other in configs)
                if name not in _NAMED | {"seed"} and (own or varies):
                    parts.append(f"{name.replace('_', ' ')} {_shown(value)}")
        labels.append("; ".join(parts))
    for say in _OTHERWISE:
        said: dict[str, set[str]] = {}
        for label, run in zip(labels, firsts, strict=True):
            said.setdefault(label, set()).add(say(run))
        labels = [
            f"{label}; {say(run)}" if len(said[label]) > 1 else label
            for label, run in zip(labels, firsts, strict=True)
        ]
    return labels


_OTHERWISE: tuple[Callable[[Scored], str], ...] = (
    lambda run: f"{run.scores['step']:,} steps",
    lambda run: f"images and initial weights of {run.workdir.name}",
    lambda run: f"of {run.workdir}",
)
"""What tells runs of one configuration apart; their images differ where their steps do not."""

_DEFENSES = {
    "none": "nothing protected",
    "facemix": "FaceMix, M = {group_size}",
    "noise": "noise of variance {image_noise_variance:g}",
    "blur": "blurring to {blur_size}x{blur_size}",
}


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "x".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _images(scored: Sequence[Scored]) -> str:
    """Data sets, sizes and splits, of all runs."""
    found = []
    for run in scored:
        data = runs.read_config(run.workdir).data
        name = "drawn faces" if data.dataset == "synthetic" else data.dataset
        scores = run.scores
        found.append(
            f"{name}, {_shown(data.image_size)}, {scores['clean']['examples']:,} images of the "
            f"{scores['split']} split"
        )
    return "; ".join(dict.fromkeys(found))


def _charts(labels: Sequence[str], groups: Sequence[Sequence[Scored]]) -> list[Chart]:
    charts = []
    for name, title in (("loss", "Training loss"), ("accuracy", "Training accuracy")):
        curves = [
            _curve(label, members, name) for label, members in zip(labels, groups, strict=True)
        ]
        found = tuple(curve for curve in curves if curve is not None)
        if found:
            charts.append(
                Chart(
                    title=title,
                    x_label="step",
                    y_label=f"{name}, training batches",
                    curves=found,
                    note="On training batches, through the defence, while the network changes; "
                    "means over seeds with 95% intervals.",
                )
            )
    return charts


def _curve(label: str, members: Sequence[Scored], name: str) -> Curve | None:
    """Means over the seeds at the steps that all have recorded; None where there are none."""
    series = []
    for run in members:
        try:
            records = read_records(run.workdir)
        except OSError:
            return None
        series.append({r["step"]: r[name] for r in records if name in r})
    steps = sorted(set.intersection(*map(set, series)))
    if not steps:
        return None
    pieces = np.array_split(np.asarray(steps), min(_POINTS, len(steps)))
    means = [
        results.mean_over_seeds(
            [float(np.mean([one[s] for s in piece.tolist()])) for one in series]
        )
        for piece in pieces
    ]
    return Curve(
        label=label,
        mark="measured",
        x=tuple(float(piece.mean()) for piece in pieces),
        y=tuple(float(mean.value) for mean in means),
        half_widths=tuple(mean.half_width for mean in means) if len(members) > 1 else (),
    )
