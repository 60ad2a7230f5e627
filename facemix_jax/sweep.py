"""Many runs: a grid or a search over any field of the configuration, one directory for each.

A trial's directory is named by a hash of its configuration, so that the same command finds what
is done, goes on with what is not, and never trains the same configuration twice; nor do those of a
grid that differ only in what their defence does not take.
"""

import dataclasses
import hashlib
import itertools
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from facemix_jax import claims, defenses, runs
from facemix_jax._validate import UsageError, one_of
from facemix_jax.data import DataConfig
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

PARTS = ("data", "model", "defense", "train")
_ALIKE = ("seed", "learning_rate", "weight_decay")
"""Fields of ``train`` in which runs that train together may differ."""

Setting = dict[str, Any]
"""Dotted field to value, as in ``{"train.learning_rate": 1e-3}``."""


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
        setting: the fields that the sweep varies, and ``train.seed``.
        config: of the run.
        workdir: of the run.
    """

    setting: Setting
    config: RunConfig
    workdir: Path


def parse_grid(texts: Iterable[str]) -> dict[str, list[Any]]:
    """``train.learning_rate=1e-3,3e-3 data.image_size=64x48,109x89`` to typed values.

    Raises:
        UsageError: a field does not exist, or a value has another type.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise UsageError(
                f"{text!r} is no list of values. Write part.field=value,value as in "
                f"train.learning_rate=1e-3,3e-3."
            )
        if name in grid:
            raise UsageError(f"{name} is given twice. Put all of its values into one list.")
        grid[name] = [parse_value(name, value) for value in values.split(",")]
    return grid


def parse_value(name: str, text: str) -> Any:
    """One value of a field, as its dataclass declares it.

    Raises:
        UsageError: as ``parse_grid``.
    """
    kind = field_type(name)
    several = typing.get_origin(kind) in (types.UnionType, typing.Union)
    options = typing.get_args(kind) if several else (kind,)
    if type(None) in options and text.lower() == "none":
        return None
    for option in options:
        try:
            if option is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if typing.get_origin(option) is tuple:
                return tuple(int(part) for part in text.split("x"))
            if option in (int, float, str):
                return option(text)
        except ValueError:
            continue
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise UsageError(
        f"{name} is {text!r}, but must be {wanted}. Lists are separated by commas, sizes written "
        f"109x89, and True, False and None as here."
    )


def field_type(name: str) -> Any:
    """The declared type of ``part.field``.

    Raises:
        UsageError: there is no such field, or runs that differ in it are one run.
    """
    part, _, field = name.partition(".")
    one_of(PARTS, **{f"the part of {name!r}": part})
    declared = typing.get_type_hints(type(getattr(RunConfig(), part)))
    one_of(declared, **{f"field of {part}": field})
    if part == "data" and field in runs.PLACES:
        raise UsageError(
            f"{name} says where images are, and runs that differ in it alone count as one. Give "
            f"one --{field.replace('_', '-')} to the whole sweep; other images need another sweep."
        )
    if part == "train" and field in runs.INTERVALS:
        raise UsageError(
            f"{name} says when runs are recorded or saved, and runs that differ in it alone count "
            f"as one. Give one --{field.replace('_', '-')} to the whole sweep."
        )
    return declared[field]


def configure(base: RunConfig, setting: Mapping[str, Any]) -> RunConfig:
    """The base with some fields changed.

    Raises:
        UsageError: the values do not fit each other.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        part, _, field = name.partition(".")
        parts.setdefault(part, {})[field] = value
    try:
        return dataclasses.replace(
            base,
            **{
                part: dataclasses.replace(getattr(base, part), **values)
                for part, values in parts.items()
            },
        )
    except UsageError as error:
        shown = ", ".join(f"{name} = {value}" for name, value in setting.items())
        raise UsageError(f"With {shown}: {error}") from None


def config_hash(config: RunConfig) -> str:
    """Twelve hexadecimal digits that stand for a run, wherever its data and devices are.

    ``runs.INTERVALS`` count as the defaults, with which they were a part of the name at first.
    """
    values = runs.portable(config)
    values["train"] |= {name: getattr(TrainConfig(), name) for name in runs.INTERVALS}
    return _digits(values)


def _digits(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def trial(base: RunConfig, setting: Setting, folder: Path) -> Trial:
    """The trial of a setting, in its directory below ``folder``."""
    # Sizes are lists where a setting was read from JSON.
    setting = {n: tuple(v) if isinstance(v, list) else v for n, v in setting.items()}
    config = configure(base, setting)
    workdir, older = (
        folder / name for name in (config_hash(config), _digits(runs.portable(config)))
    )
    if older.exists() and not workdir.exists():  # of a sweep that was named after its intervals
        workdir = older
    return Trial(setting, config, workdir)


def expand(
    base: RunConfig, grid: Mapping[str, Sequence[Any]], num_seeds: int, folder: Path
) -> list[Trial]:
    """Every combination of a grid, each with ``num_seeds`` seeds from the base's on.

    Of those that differ only in what their defence does not take, as the group size of ``none``,
    the first stands for all.

    Raises:
        UsageError: a combination does not fit; nothing has started then.
    """
    seeds = [base.train.seed + index for index in range(num_seeds)]
    if "train.seed" in grid:
        if num_seeds > 1:
            raise UsageError(
                f"num_seeds is {num_seeds}, but train.seed stands in the grid. Give one of them."
            )
        seeds = list(grid["train.seed"])
    names = [name for name in grid if name != "train.seed"]
    trials = [
        trial(base, {**dict(zip(names, values, strict=True)), "train.seed": seed}, folder)
        for values in itertools.product(*(grid[name] for name in names))
        for seed in seeds
    ]
    first: dict[str, Trial] = {}
    for each in trials:
        same = dataclasses.replace(each.config, defense=defenses.used(each.config.defense))
        first.setdefault(config_hash(same), each)
    return list(first.values())


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """Each directory's trial once: settings can come to the same run."""
    return list({each.workdir: each for each in trials}.values())


def groups(trials: Iterable[Trial], at_once: int) -> list[list[Trial]]:
    """Trials that one program can train together, at most so many at once; see ``population``."""
    found: dict[str, list[Trial]] = {}
    for each in trials:
        values = runs.portable(each.config)
        for name in _ALIKE:
            del values["train"][name]
        found.setdefault(json.dumps(values, sort_keys=True), []).append(each)
    return [
        alike[first : first + at_once]
        for alike in found.values()
        for first in range(0, len(alike), at_once)
    ]


Images = Callable[[DataConfig], Mapping[str, Any]]
"""``runs.images_named``, cached: trials share their images."""


def check_claims(trials: Iterable[Trial], images: Images) -> None:
    """Makes sure that no trial's directory holds another run or one on other images.

    Raises:
        UsageError: as ``claims.check_claim``.
        DataError: a directory says what its images were, and those given cannot be read.
    """
    for each in trials:
        claims.check_claim(each.workdir, each.config)
        config = each.config.data  # drawn faces follow from it
        if config.data_dir is not None and runs.read_images(each.workdir) is not None:
            claims.check_claim(each.workdir, each.config, images=images(config))


def claim(trials: Iterable[Trial]) -> None:
    """Makes the trials' directories, each with its ``config.json``.

    Raises:
        FacemixError: as ``claims.claim``.
    """
    for each in trials:
        claims.claim(each.workdir, each.config)
