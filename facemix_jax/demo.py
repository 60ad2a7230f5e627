"""The main job on drawn faces, from training to one HTML page.

Trains a network plainly and one encryption-aware, runs both through edge and cloud parts, attacks
what the cloud sees, and writes ``report.html``.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from facemix_jax import (
    checkpoint,
    costs,
    data,
    defenses,
    evaluation,
    fitting,
    gathering,
    linearity,
    models,
    output,
    report,
    runs,
)
from facemix_jax._files import write_atomically
from facemix_jax.data import DataConfig, Source
from facemix_jax.defenses import DefenseConfig
from facemix_jax.evaluation import Leakage, Utility
from facemix_jax.models import ModelConfig
from facemix_jax.report import Note, Picture, Section, Table
from facemix_jax.results import TRUTH
from facemix_jax.runs import Run, RunConfig
from facemix_jax.training import TrainConfig

GROUP_SIZE = 8
_DATA = DataConfig(image_size=(96, 80), train_examples=4096, test_examples=1024)
_MODEL = ModelConfig(width=16)
_TRAIN = TrainConfig(
    num_epochs=4, learning_rate=4e-3, warmup_fraction=0.2, adam_b2=0.99, nesterov=True, flip=False
)
CONFIGS = {
    "plain": RunConfig(
        data=_DATA, model=_MODEL, train=_TRAIN, defense=DefenseConfig(defense="none")
    ),
    "facemix": RunConfig(
        data=_DATA, model=_MODEL, train=_TRAIN, defense=DefenseConfig(group_size=GROUP_SIZE)
    ),
}


class Result(NamedTuple):
    """What the demo measured.

    Attributes:
        utility: row label to scores.
        leakage_images: attacks where the image itself is mixed (cut 0).
        leakage_activations: attacks on the trained network's activations (cut 1).
        unmix_error: relative error of the logits, of both networks.
        attack_seconds: of the attacks on the activations, compilation included.
        seconds: of everything in this call.
        reused: networks that an earlier call has trained or begun to train; ``seconds`` leaves
            its part out.
    """

    utility: dict[str, Utility]
    leakage_images: Leakage
    leakage_activations: Leakage
    unmix_error: dict[str, float]
    attack_seconds: float
    seconds: float
    reused: tuple[str, ...]


def run(out: Path, *, say: Callable[[str], None]) -> Result:
    """Does everything and writes ``out/report.html``; a second call goes on where one stopped.

    Args:
        out: folder for the report and both work directories.
        say: is told what happens.

    Raises:
        FacemixError: the folder cannot be written, or holds other runs.
    """
    gathering.check_folder(out)
    started = time.perf_counter()
    say("drawing faces")
    source = data.load_source(_DATA)
    trained: dict[str, Run] = {}
    reused = tuple(name for name in CONFIGS if checkpoint.newest(out / name / "checkpoints"))
    for name, config in CONFIGS.items():
        say(f"training {name}")
        state = fitting.fit(config, out / name, source=source)
        trained[name] = runs.from_state(config, source, state)

    say("inferring through edge and cloud")
    plain, mixed = trained["plain"], trained["facemix"]
    utility = {
        "plain network, nothing mixed": _utility(plain, defenses.none()),
        "plain network, mixed": _utility(plain, mixed.defense),
        "encryption-aware network, nothing mixed": _utility(mixed, defenses.none()),
        "encryption-aware network, mixed (FaceMix)": _utility(mixed, mixed.defense),
    }
    say("attacking what the cloud sees")
    rng_key = jax.random.key(1)
    whole = models.build(
        dataclasses.replace(_MODEL, cut=0),
        image_size=source.image_size,
        num_attributes=len(source.attribute_names),
    )
    # Main's weights do not matter to who separates images.
    leakage_images = evaluation.evaluate_leakage(
        whole, mixed.defense, whole.init(jax.random.key(0)), source, rng_key=rng_key
    )
    clock = time.perf_counter()
    leakage_activations = evaluation.evaluate_leakage(
        mixed.model, mixed.defense, mixed.variables, source, rng_key=rng_key
    )
    attack_seconds = time.perf_counter() - clock
    result = Result(
        utility=utility,
        leakage_images=leakage_images,
        leakage_activations=leakage_activations,
        unmix_error={name: _unmix_error(part) for name, part in trained.items()},
        attack_seconds=attack_seconds,
        seconds=time.perf_counter() - started,
        reused=reused,
    )
    say("writing the report")
    write_atomically(out / "report.html", render(result, source))
    return result


def _utility(part: Run, defense: defenses.Defense) -> Utility:
    return evaluation.evaluate_utility(
        part.model, defense, part.variables, part.source, rng_key=jax.random.key(0)
    )


def _unmix_error(part: Run) -> float:
    images = next(iter(data.eval_batches(part.source, split="test", batch_size=64))).images
    activations = part.model.pre(part.variables["pre"], data.normalize(images))
    main = functools.partial(part.model.main.apply, part.variables["main"])
    return linearity.measure(
        main,
        activations,
        rng_key=jax.random.key(0),
        group_size=GROUP_SIZE,
        num_keys=4,
        read=functools.partial(part.model.post.apply, part.variables["post"]),
    ).mean


def render(result: Result, source: Source) -> str:
    """The HTML page."""
    config = CONFIGS["facemix"]
    constant = result.utility["plain network, nothing mixed"]
    utility = Table(
        ("test images", "accuracy", "balanced accuracy"),
        [
            *(
                (name, f"{score.accuracy:.1%}", f"{score.balanced_accuracy:.1%}")
                for name, score in result.utility.items()
            ),
            (
                "always the more frequent answer",
                f"{constant.majority_accuracy:.1%}",
                f"{constant.majority_balanced_accuracy:.1%}",
            ),
        ],
    )
    leakage = Table(
        ("what is mixed", "attack", "no attack", "attacker", "owner of the key", "key advantage"),
        [
            *_leakage_rows("the image (cut 0)", result.leakage_images),
            *_leakage_rows("after the stem (cut 1, as trained)", result.leakage_activations),
        ],
    )
    errors = result.unmix_error
    cost = costs.cost_report(
        config.model,
        image_size=source.image_size,
        group_size=GROUP_SIZE,
        link=costs.Link(),
        num_attributes=len(source.attribute_names),
    )
    cost_rows = costs.format_cost(cost)
    earlier = f" (but for an earlier call's training: {', '.join(result.reused)})"
    first = slice(0, GROUP_SIZE)
    images = result.leakage_images
    activations = result.leakage_activations
    return report.page(
        "FaceMix: mixed split inference, trained, run and attacked",
        [
            "The edge runs the first layers, mixes groups of "
            f"{GROUP_SIZE} activations with a secret random orthogonal matrix and sends the "
            "mixtures. The cloud runs the rest of the network on them. The edge unmixes what "
            "comes back and reads the answer.",
            Note(TRUTH),
        ],
        [
            Section(
                "Three views of the same eight faces",
                [
                    "When the image itself is mixed: the originals, what the cloud sees, and what "
                    "gradient ICA makes of what the cloud sees.",
                    Picture(
                        report.image_rows(
                            [
                                np.asarray(data.denormalize(images.truth[0, first])),
                                report.as_pictures(images.mixtures[0, first]),
                                np.asarray(data.denormalize(images.recovered[0, first])),
                            ]
                        ),
                        "Originals, mixtures, and faces recovered by the attack (cut 0).",
                    ),
                    "After the trained stem, as the two networks below use it: activations (mean "
                    "over channels), mixtures, and what the same attack gives back.",
                    Picture(
                        report.image_rows(
                            [
                                report.as_pictures(maps[0, first])
                                for maps in (
                                    activations.truth,
                                    activations.mixtures,
                                    activations.recovered,
                                )
                            ],
                            zoom=3,
                        ),
                        "Activations, mixtures, and activations recovered by the attack (cut 1).",
                    ),
                ],
            ),
            Section(
                "How well attributes are predicted",
                [
                    utility,
                    "Unmixing is exact only for a linear main. Relative error of the logits that "
                    f"mixing causes: {errors['plain']:.2f} for the plain network, "
                    f"{errors['facemix']:.2f} after encryption-aware training.",
                ],
            ),
            Section(
                "What the cloud learns",
                [
                    "Mean |correlation| with the true activations, matched one to one within each "
                    "group: 1 is perfect. No attack: the mixtures themselves.",
                    leakage,
                    *(
                        f"{name} {figure.threat_model}."
                        for name, figure in activations.figures.items()
                    ),
                    "The key advantage is what holding the secret is worth: owner minus attacker. "
                    f"Attacks on the activations of {len(activations.truth)} groups: "
                    f"{result.attack_seconds:.1f} s with compilation.",
                ],
            ),
            Section("What it costs", [Table(cost_rows[0], cost_rows[1:])]),
        ],
        f"Measured on drawn faces ({_DATA.train_examples} for training, {_DATA.test_examples} test "
        f"images of other people, {source.image_size[0]}x{source.image_size[1]}), ResNet-18 of "
        f"width {config.model.width}, {config.train.num_epochs} epochs, seed {config.train.seed}, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {result.seconds:.0f} s"
        f"{earlier if result.reused else ''}.",
    )


def _leakage_rows(name: str, leakage: Leakage) -> Iterator[tuple[str, ...]]:
    for attack, figure in leakage.figures.items():
        values = (figure.floor, figure.value, figure.owner, figure.key_advantage)
        yield (name, attack, *(f"{value:.3f}" for value in values))


def summary(result: Result) -> dict[str, Any]:
    """The numbers, ready for JSON."""
    return {
        "utility": {name: score._asdict() for name, score in result.utility.items()},
        "leakage": {
            "cut 0": output.figure_dicts(result.leakage_images.figures),
            "cut 1": output.figure_dicts(result.leakage_activations.figures),
        },
        "unmix_error": result.unmix_error,
        "seconds": result.seconds,
        "reused_trainings": list(result.reused),
    }
