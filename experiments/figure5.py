"""The paper's Figure 5: faces as they are, as they are sent, and as attackers draw them again."""

import dataclasses
import hashlib
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measuring
import numpy as np
import report
from scale import SCALES, Name, Scale, data_config, output

from facemix_jax import (
    _runtime,
    anonymizing,
    attacks,
    data,
    defenses,
    metrics,
    models,
    results,
    runs,
)
from facemix_jax import report as pages
from facemix_jax._files import write_atomically
from facemix_jax._types import HostArray, RngKey
from facemix_jax._validate import divides, one_of, positive
from facemix_jax.attacks import blind, reconstruction, restoration, separation
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.defenses import Defense, DefenseConfig
from facemix_jax.models import ModelConfig

GROUP_SIZE = 8
ANONYMIZER, FACEMIX = "face anonymizer", "FaceMix, M = 8"
DEFENSES: dict[str, Defense] = {
    "noise N(0, 8)": defenses.noise(variance=8.0),
    "blurring 8x8": defenses.blur(size=8),
    ANONYMIZER: defenses.none(),
    FACEMIX: defenses.facemix(group_size=GROUP_SIZE),
}
"""What is done to the image itself (cut 0); the anonymizer is a network, not a defence on top."""

SENT, RIDGE, PIX2PIX, ICA, OWNER = "as sent", "ridge", "Pix2Pix", "gradient ICA", "owner"
ATTACKERS = (PIX2PIX, RIDGE, ICA)
MOST_IMAGES = 2048
"""Recorded at once, whatever the scale."""

SIGN_IMAGES = 1024
"""Own images from which the attacker learns what a face's sign is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The same faces under every system, and what attackers make of them.

    Command: ``python experiments/figure5.py --data-dir CELEBA``, for the committed cells with
    ``--steps 150 --images 256``; with ``--scale smoke`` faces are drawn, and no files are needed. A
    system that the JSON file and the folder of pictures hold is not attacked again.

    Run time: 3 minutes of processor time at ``smoke``, nearly all of it compilation; 15 minutes at
    ``cpu`` with ``--steps 150 --images 256`` on two busy cores.

    Expected: Pix2Pix draws the faces behind noise, blurring and the anonymizer, and behind FaceMix
    little but the mean face; gradient ICA gets the very same faces back from FaceMix, at a mean
    matched |correlation| above .99.

    Attributes:
        data_dir: folder with the official CelebA files; not needed at ``smoke``.
        cache_dir: folder for decoded images; None for the data set's default.
        scale: size of images and effort of attackers.
        seed: of the faces, the secrets and the attackers.
        systems: which; all of them by default.
        faces: in the picture, whole groups of eight.
        images: test images that are attacked and scored; None for the scale's, 2,048 at most.
        steps: of training Pix2Pix; None for the scale's.
        drawings: faces, or groups of them, in such a step.
        anonymizer: work directory of ``facemix anonymize`` on images of this size; None trains one
            briefly, in ``pictures``.
        anonymizer_images: it is trained on then.
        anonymizer_epochs: over them.
        pictures: folder for the picture and the faces in it, which may be real ones: keep it out
            of the repository.
        output: JSON file with the scores, no faces; None for the scale's in ``results``.
    """

    data_dir: str | None = None
    cache_dir: str | None = None
    scale: Name = "cpu"
    seed: int = 0
    systems: tuple[str, ...] = tuple(DEFENSES)
    faces: int = GROUP_SIZE
    images: int | None = None
    steps: int | None = None
    drawings: int = 8
    anonymizer: Path | None = None
    anonymizer_images: int = 1024
    anonymizer_epochs: int = 2
    pictures: Path = Path("runs/figure5")
    output: Path | None = None

    def __post_init__(self) -> None:
        """Checks names and sizes."""
        for name in self.systems:
            one_of(DEFENSES, system=name)
        positive(faces=self.faces, drawings=self.drawings)
        divides(GROUP_SIZE, divisor_name="the group size", faces=self.faces)
        if self.images is not None:
            positive(images=self.images)
            divides(GROUP_SIZE, divisor_name="the group size", images=self.images)


class Recovery(NamedTuple):
    """What somebody makes of what was sent.

    Attributes:
        faces: float32 ``[B, H, W, 3]`` in [-1, 1], in the order of the truth.
        figures: further scores, by name.
    """

    faces: HostArray
    figures: Mapping[str, float]


def main(config: Config) -> None:
    """Attacks the systems that are missing, writes the scores, draws the picture."""
    chosen = SCALES[config.scale]
    images = data_config(chosen, config.data_dir, config.cache_dir)
    source = data.load_source(images)
    cells = report.Cells(
        config.output or output("figure5", config.scale),
        config,
        name=f"figure5, {config.scale}",
        images={"data": report.images_of(images)},
        chooses=("systems",),
        summarize=lambda cells: (tables(cells, drawn=chosen.drawn), ()),
    )
    rows = drawn_rows(config, chosen, source)
    given = config.anonymizer
    which = None if given is None else report.run_hash(runs.load(given, data_dir=config.data_dir))
    shown = {}
    for name in config.systems:
        label = "_".join(re.findall(r"\w+", name))
        kept = config.pictures / f"{config.scale}-{label}-{digest(config, source, which)}.npz"
        done = cells.has(which if name == ANONYMIZER else None, system=name)
        if not (done and kept.exists()):
            began = time.perf_counter()
            target = build(name, config, chosen, source)
            found, faces = attacked(target, rows, config, chosen)
            kept.parent.mkdir(parents=True, exist_ok=True)
            first: dict[str, Any] = {label: x[: config.faces] for label, x in faces.items()}
            file = io.BytesIO()
            np.savez(file, **first)
            write_atomically(kept, file.getvalue())
            if not done:
                found["seconds"] = round(time.perf_counter() - began, 1)
                if name == ANONYMIZER:
                    found["run_hash"] = which
                cells.add({"system": name, "images": len(rows), **found})
        with np.load(kept) as stored:
            shown[name] = {label: stored[label] for label in stored.files}
    cells.save()
    path = config.pictures / f"figure5_{config.scale}.png"
    write_atomically(path, picture(shown, {cell["system"]: cell for cell in cells.cells}))
    print(f"{path}: {config.faces} faces of the test split, seed {config.seed}")


def digest(config: Config, source: data.Source, anonymizer: str | None) -> str:
    """Stands for what the faces of a system follow from: other scores are of other faces."""
    options = {**report.options(config), "systems": None}
    images = runs.images_of(source, source.image_size)
    text = json.dumps([options, images, anonymizer], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def drawn_rows(config: Config, chosen: Scale, source: data.Source) -> HostArray:
    """Test images in an order that follows from the seed; the first ones are in the picture."""
    rows = source.splits["test"]
    wanted = config.images or min(chosen.attack_images, MOST_IMAGES)
    count = min(wanted, len(rows)) // GROUP_SIZE * GROUP_SIZE
    return np.random.default_rng(config.seed).permutation(rows)[:count]


def build(name: str, config: Config, chosen: Scale, source: data.Source) -> attacks.Target:
    """A system under attack."""
    if name == ANONYMIZER:
        run = trained_anonymizer(config, chosen)
        model, variables = run.model, run.variables
    else:
        model = models.build(
            measuring.sized(ModelConfig(cut=0), chosen),
            image_size=source.image_size,
            num_attributes=len(source.attribute_names),
        )
        # Pre is the identity at cut 0, so that nothing has to be trained.
        variables = model.init(jax.random.key(config.seed))
    return attacks.Target(model=model, defense=DEFENSES[name], variables=variables, source=source)


def trained_anonymizer(config: Config, chosen: Scale) -> runs.Run:
    """The run that is given, or one that is trained briefly."""
    if config.anonymizer is not None:
        return runs.load(config.anonymizer, data_dir=config.data_dir)
    images = data_config(chosen, config.data_dir, config.cache_dir)
    few = min(config.anonymizer_images, chosen.train_examples or config.anonymizer_images)
    wanted = runs.RunConfig(
        data=dataclasses.replace(images, train_examples=few),
        model=measuring.sized(ModelConfig(network="anonymizer"), chosen),
        defense=DefenseConfig(defense="none"),
        train=dataclasses.replace(
            chosen.train,
            num_epochs=min(config.anonymizer_epochs, chosen.train.num_epochs),
            batch_size=min(few, chosen.train.batch_size),
            learning_rate=5e-3,
            seed=config.seed,
        ),
    )
    workdir = config.pictures / f"anonymizer-{config.scale}"
    options = anonymizing.AnonymizerConfig(identifier_width=chosen.width)
    anonymizing.fit(wanted, options, workdir, say=print)
    return runs.load(workdir)


def attacked(
    target: attacks.Target, rows: HostArray, config: Config, chosen: Scale
) -> tuple[dict[str, Any], dict[str, HostArray]]:
    """Scores of every attacker that suits the target, and the faces of each in [-1, 1]."""
    record_key, *keys = jax.random.split(jax.random.key(config.seed), 4)
    recording = attacks.record(report.without_main(target), rows, rng_key=record_key)
    truth = recording.images / np.float32(127.5) - 1
    found = {SENT: matched(unit(by_group(recording.view.mixtures, recording)), truth)}
    if target.defense.keyed:
        found[OWNER] = Recovery(unit(recording.owner_activations), {})
    if restoration.RESTORATION.unsuitable(target) is None:
        sent = np.asarray(recording.view.mixtures)
        found[RIDGE] = Recovery(unit(restoration.restore(target, sent, rng_key=keys[0])), {})
    effort = attacks.AttackConfig(
        steps=config.steps or chosen.attack_steps,
        batch_size=config.drawings * target.defense.group_size,
    )
    # Whoever has the key has the faces, and need not train Pix2Pix for them.
    alone = dataclasses.replace(target, defense=target.defense._replace(keyed=False))
    result = reconstruction.PIX2PIX.run(alone, recording, keys[1], effort)
    assert result.recovered is not None  # it draws faces
    found[PIX2PIX] = Recovery(2 * result.recovered - 1, {})
    if target.defense.keyed:
        found[ICA] = separated(target, recording, keys[2])
    mean = np.broadcast_to(reconstruction.mean_face(target), truth.shape)
    scores = {
        label: {
            "minus_squared_error": -float(((faces - truth) ** 2).mean(dtype=np.float64)),
            "ssim": float(metrics.ssim(faces, truth, max_value=2.0).mean()),
            **figures,
        }
        for label, (faces, figures) in {**found, "mean face": Recovery(mean, {})}.items()
    }
    rounded = {
        label: {name: round(value, 4) for name, value in some.items()}
        for label, some in scores.items()
    }
    faces = {label: recovery.faces for label, recovery in found.items()}
    effort_of = {"steps": effort.steps, "batch_size": effort.batch_size}
    return {"scores": rounded, **effort_of}, {"raw": truth, "mean face": mean, **faces}


def unit(normalized: Any) -> HostArray:
    """Normalised images ``[..., 3]`` to [-1, 1], clipped as a display would."""
    return 2 * np.clip(np.asarray(data.denormalize(jnp.asarray(normalized))), 0, 1) - 1


def matched(groups: HostArray, truth: HostArray) -> Recovery:
    """Faces ``[G, M, ...]`` in the order of the truth ``[B, ...]``: least squared error."""
    pairs = zip(groups, truth.reshape(groups.shape), strict=True)
    faces = np.concatenate([found[metrics.assignment(found, true)] for found, true in pairs])
    return Recovery(faces, {})


def separated(target: attacks.Target, recording: attacks.Recording, rng_key: RngKey) -> Recovery:
    """Gradient ICA, and for the signs a regression that tells faces from their negatives."""
    mixtures = by_group(recording.view.mixtures, recording)
    sources = np.asarray(separation.separate(mixtures, rng_key=rng_key).sources)
    signs = signs_of(target, sources.reshape(-1, *sources.shape[2:]))
    faces = sources * signs.reshape(*sources.shape[:2], 1, 1, 1)
    truth = np.asarray(truth_by_group(recording.activations, recording))
    # By |correlation|, so that a face with the wrong sign still stands in its place.
    matches = [metrics.matched_correlation(f, t) for f, t in zip(faces, truth, strict=True)]
    found = np.concatenate([f[match.permutation] for f, match in zip(faces, matches, strict=True)])
    floor = blind.recovery(mixtures, truth)
    owner = blind.recovery(truth_by_group(recording.owner_activations, recording), truth)
    return Recovery(
        unit(found),
        {
            "correlation": float(np.mean([match.mean for match in matches])),
            "correlation_no_attack": float(floor.mean()),
            "correlation_owner": float(owner.mean()),
            "signs_right": float(np.mean([match.signs > 0 for match in matches])),
        },
    )


def signs_of(target: attacks.Target, sources: HostArray) -> HostArray:
    """Which of ``[B, H, W, 3]`` are faces (1) and which their negatives (-1), float32 ``[B]``.

    Ridge regression on the attacker's own images and their negatives.
    """
    rows = target.source.splits[target.auxiliary_split][:SIGN_IMAGES]
    own = np.asarray(data.normalize(target.source.images(rows))).reshape(len(rows), -1)
    labels = np.ones((len(rows), 1), np.float32)
    ridge = restoration.fit_ridge(np.concatenate([own, -own]), np.concatenate([labels, -labels]))
    answers = ridge(sources.reshape(len(sources), -1))[:, 0]
    return np.where(answers < 0, np.float32(-1), np.float32(1))


def picture(shown: Mapping[str, Mapping[str, HostArray]], cells: Mapping[str, Any]) -> bytes:
    """A PNG: the raw faces, then each system's rows with their scores.

    Args:
        shown: by system and row, float ``[N, H, W, 3]`` in [-1, 1].
        cells: by system, with the scores.
    """
    first = next(iter(shown.values()))
    rows = {"raw faces": (first["raw"] + 1) / 2}
    for name, faces in shown.items():
        scores = cells[name]["scores"]
        for label in (SENT, *ATTACKERS):
            if label in faces:
                score = scores[label]["minus_squared_error"]
                rows[f"{name}\n{label}: MSE {-score:.3f}"] = (faces[label] + 1) / 2
    score = scores["mean face"]["minus_squared_error"]
    rows[f"nothing seen:\nmean face: MSE {-score:.3f}"] = (first["mean face"] + 1) / 2
    return pages.labelled_rows(rows)


def tables(cells: Sequence[Mapping[str, Any]], *, drawn: bool = False) -> list[results.ResultTable]:
    """Squared error and structural similarity by system, the strongest attacker beside each.

    Args:
        cells: of the results file.
        drawn: whether the faces were drawn by the package.
    """
    if not cells:
        return []

    def table(title: str, score: str, note: str = "") -> results.ResultTable:
        names = (SENT, "mean face", *ATTACKERS)
        weak = {name: "strongest" for name in ATTACKERS}
        columns = [
            results.Column(name=name, format="fixed3", strongest=weak.get(name)) for name in names
        ]
        rows = []
        for cell in sorted(cells, key=lambda cell: list(DEFENSES).index(cell["system"])):
            values = {name: of[score] for name, of in cell["scores"].items()}
            strongest = max(values[name] for name in ATTACKERS if name in values)
            listed = [*(values.get(name) for name in names), strongest, values.get(OWNER)]
            rows.append(
                results.Row(label=cell["system"], cells=tuple(map(report.measured, listed)))
            )
        more = (results.Column(name=name, format="fixed3") for name in ("strongest", OWNER))
        return results.ResultTable(
            title=f"{title}, {cells[0]['images']} {'drawn ' * drawn}test images",
            columns=(*columns, *more),
            rows=tuple(rows),
            note=note,
        )

    found = [
        table(
            "Faces drawn again: minus mean squared error on [-1, 1]",
            "minus_squared_error",
            "Matched within groups. The mean face sees nothing at all. An owner stands only where "
            "there is a key; elsewhere the owner sees what is sent. Of the paper's Table 3 "
            "(LFWA), Pix2Pix: -0.02 for the noise, -0.07 for the blurring, -0.37 for FaceMix.",
        ),
        table("Structural similarity", "ssim"),
    ]
    for cell in cells:
        if ICA in cell["scores"]:
            scores = cell["scores"][ICA]
            names = ("correlation", "correlation_no_attack", "correlation_owner", "signs_right")
            heads = (ICA, "no attack", OWNER, "share of signs right")
            columns = tuple(results.Column(name=name, format="fixed3") for name in heads)
            row = results.Row(
                label=cell["system"], cells=tuple(report.measured(scores[name]) for name in names)
            )
            title = "Mean matched |correlation| with the faces that were mixed"
            found.append(
                results.ResultTable(title=title, columns=columns, rows=(row,), note=report.QUICK)
            )
    return found


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
