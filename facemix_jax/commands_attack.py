"""``facemix attack``: what the cloud learns from a work directory's mixtures."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from facemix_jax import output, report, runs
from facemix_jax._arguments import Folder
from facemix_jax._files import write_atomically
from facemix_jax._types import HostArray
from facemix_jax._validate import FacemixError, UsageError, in_range, one_of
from facemix_jax.attacks import AttackConfig, Figure, Target
from facemix_jax.attacks.base import own_split
from facemix_jax.data.source import SPLITS
from facemix_jax.output import NOTES

_ALL = "all"

_PICTURED = 8
"""Images shown: those of the first groups, whatever they look like."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """What the cloud learns from a work directory's mixtures: every attack, the paper's first.

    Example: facemix attack --workdir runs/m8 --json attacks.json --pictures attacks.png

    Example: facemix attack --workdir runs/m8 --attack gradient_ica
    """

    workdir: Folder
    """Of a training run."""
    attack: tuple[str, ...] = (_ALL,)
    """Only these; the strongest run beside them. Without it, all that apply: attributes, identity,
    pix2pix, set_attributes, set_identity, span, known_plaintext, reused_key, intersection,
    membership, weak_randomness, collusion, nonnegative, adversarial, iva, contrast, alignment,
    picard, shuffled_chain, gradient_ica, restoration, output, inversion, judge, robust."""
    config: tyro.conf.OmitArgPrefixes[AttackConfig] = AttackConfig()
    split: str = "test"
    """Split whose images are attacked; images of the train split, or of the test split where that
    one is attacked, are the attacker's own."""
    data_dir: str | None = None
    """Where the images are now; by default where they were in training."""
    seed: int = 0
    """Of the secrets and of the attacks."""
    pictures: Path | None = None
    """Write a PNG: the first images, what the cloud sees of them, what each attack recovers (tiles
    in the right order and sign, which no attacker is told)."""
    json: str | None = None
    """Write the result as JSON to this path; - for standard output."""

    def run(self) -> None:
        """Runs the command."""
        # Imported here: the attacks' own networks and optimisers take a while.
        from facemix_jax.attacks import suite

        in_range(0, 2**32 - 1, seed=self.seed)
        one_of(SPLITS, split=self.split)
        if not self.attack:
            raise UsageError(
                "--attack names none. Name one at least, or leave --attack out for all of them."
            )
        every = self.attack == (_ALL,)
        for name in () if every else self.attack:
            one_of(suite.ATTACKS, attack=name)
        output.check_png(self.pictures, "--pictures")
        results = {"--pictures": self.pictures, "--json": self.json}
        output.check_apart(results, [])
        output.check_outside(results, self.data_dir or runs.read_config(self.workdir).data.data_dir)
        names = tuple(suite.ATTACKS) if every else self.attack
        trained = runs.load(self.workdir, data_dir=self.data_dir)
        target = Target(
            model=trained.model,
            defense=trained.defense,
            variables=trained.variables,
            source=trained.source,
            split=self.split,
            auxiliary_split=own_split(self.split),
        )
        found = suite.run_suite(
            target,
            names,
            rng_key=jax.random.key(self.seed),
            config=self.config,
            say=lambda name: NOTES.print(f"{name} ..."),
        )
        for name, reason in found.skipped.items():
            NOTES.print(f"{name} was left out: {reason}", soft_wrap=True)
        result = {
            "groups": len(found.recording.images) // trained.defense.group_size,
            "group_size": trained.defense.group_size,
            "defense": trained.defense.name,
            "cut": trained.config.model.cut,
            "split": self.split,
            "seed": self.seed,
            "effort": dataclasses.asdict(self.config),
            "attacks": {
                name: {
                    "threat_model": suite.ATTACKS[name].threat_model,
                    "figures": [output.figure_dict(figure) for figure in attack.figures],
                }
                for name, attack in found.results.items()
            },
            "skipped": found.skipped,
        }
        if self.pictures is not None:
            _write(self.pictures, picture(found))
        rows = [
            (name, figure) for name, attack in found.results.items() for figure in attack.figures
        ]
        title = f"{trained.defense.name}, cut {trained.config.model.cut}"
        output.emit(self.json, result, _table(title, rows), _known(rows))


def picture(found: Any) -> bytes:
    """A PNG: originals, what was sent, and what each attack recovered of the first images.

    What was recovered tile by tile is put together as the truth has it.
    """
    # Imported here as above: it brings the decoders.
    from facemix_jax.attacks.tile_faces import by_image

    recording, whole = found.recording, found.whole
    maps, parts = whole.activations.shape, recording.activations.shape
    grid = maps[1] // parts[1], maps[2] // parts[2]
    rows = {
        "original": recording.images[:_PICTURED] / np.float32(255),
        "sent": report.as_pictures(np.asarray(whole.view.mixtures[:_PICTURED])),
    }
    for name, result in found.results.items():
        if result.recovered is not None:
            recovered: HostArray = np.asarray(result.recovered)
            if len(recovered) > len(recording.images):
                tiles = recovered.reshape(recording.activations.shape)
                recovered = by_image(tiles, recording, grid)
            recovered = recovered[:_PICTURED]
            is_image = recovered.shape[-1] == 3 and 0 <= recovered.min() <= recovered.max() <= 1
            rows[name] = recovered if is_image else report.as_pictures(recovered)
    return report.labelled_rows(rows)


def _table(title: str, rows: list[tuple[str, Figure]]) -> Any:
    """Guess and ceiling have no column where no figure has them: terminals are narrow."""
    values: dict[str, list[float | None]] = {
        "chance": [figure.chance for _, figure in rows],
        "no attack": [figure.floor for _, figure in rows],
        "attacker": [figure.value for _, figure in rows],
        "ceiling": [figure.ceiling for _, figure in rows],
        "owner": [figure.owner for _, figure in rows],
        "key advantage": [figure.key_advantage for _, figure in rows],
    }
    shown = {name: column for name, column in values.items() if any(v is not None for v in column)}
    cells = [
        ["" if value is None else f"{value:.3f}" for value in line]
        for line in zip(*shown.values(), strict=True)
    ]
    lines = []
    for index, (name, figure) in enumerate(rows):
        first = index == 0 or rows[index - 1][0] != name
        label = Text.assemble((f"{name}\n", "bold"), figure.name) if first else figure.name
        lines.append((label, *cells[index]))
    made = output.table(title, tuple(shown), lines)
    made.columns[0].min_width = 16
    for heading, column in zip(shown, made.columns[1:], strict=True):
        column.max_width = max(7, *map(len, heading.split()))
    return made


def _known(rows: list[tuple[str, Figure]]) -> Any:
    """What each attacker was given, below the table: figures mean nothing without it."""
    made = Table.grid(padding=(0, 1))
    for name in dict.fromkeys(name for name, _ in rows):
        models = dict.fromkeys(figure.threat_model for other, figure in rows if other == name)
        made.add_row(Text(f"{name}:", "bold"), Text("\n".join(models)))
    return made


def _write(path: Path, png: bytes) -> None:
    try:
        write_atomically(path, png)
    except OSError as error:
        raise FacemixError(
            f"The pictures cannot be written to {path}: {error}. Choose another --pictures path."
        ) from error
