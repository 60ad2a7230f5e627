"""The sizes at which the paper's experiments run, from a smoke test to the paper's own."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from facemix_jax.data import DataConfig
from facemix_jax.training import TrainConfig

Name = Literal["smoke", "cpu", "gpu", "paper"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """One size.

    Attributes:
        drawn: whether faces are drawn by the package, so that no files are needed.
        image_size: height, width.
        width: channels after the stem.
        train_examples: training images; None for all.
        test_examples: test images; None for all.
        train: how networks are trained.
        seeds: how many seeds are averaged.
        attack_steps: of each learned attacker.
        attack_images: test images that learned attackers are scored on, at most.
        attack_batch: examples in a step of the attackers that recognise.
        separated_images: test images whose activations are separated.
        eval_batch: images that are scored at a time.
        compute_dtype: of the networks' products.
        device_resident: as in ``DataConfig``.
    """

    drawn: bool = False
    image_size: tuple[int, int]
    width: int
    train_examples: int | None
    test_examples: int | None
    train: TrainConfig
    seeds: int
    attack_steps: int
    attack_images: int
    attack_batch: int = 64
    separated_images: int = 64
    eval_batch: int = 128
    compute_dtype: str = "float32"
    device_resident: bool = False


_SHORT = TrainConfig(
    num_epochs=6,
    learning_rate=4e-3,
    warmup_fraction=0.2,
    adam_b2=0.99,
    nesterov=True,
    flip=False,
)
"""What little training makes the most of: docs/accuracy.md."""

SCALES: dict[str, Scale] = {
    "smoke": Scale(
        drawn=True,
        image_size=(80, 68),
        width=8,
        train_examples=256,
        test_examples=64,
        train=dataclasses.replace(_SHORT, num_epochs=1),
        seeds=1,
        attack_steps=2,
        attack_images=64,
    ),
    "cpu": Scale(
        image_size=(80, 68),
        width=8,
        train_examples=8192,
        test_examples=2048,
        train=_SHORT,
        seeds=4,
        attack_steps=200,
        attack_images=1024,
    ),
    "gpu": Scale(
        image_size=(109, 89),
        width=64,
        train_examples=None,
        test_examples=None,
        train=dataclasses.replace(_SHORT, num_epochs=12, batch_size=256, flip=True),
        seeds=4,
        attack_steps=400,
        attack_images=4096,
        # Of a training step's size, all: fewer convolutions for a GPU to compile.
        attack_batch=256,
        separated_images=256,
        eval_batch=256,
        compute_dtype="bfloat16",
        device_resident=True,
    ),
    "paper": Scale(
        image_size=(218, 178),
        width=64,
        train_examples=None,
        test_examples=None,
        train=TrainConfig(num_epochs=100, batch_size=256),
        seeds=4,
        attack_steps=20000,
        # Of 19,962: by their sizes the arrays that separate all groups at once take over 100 GB.
        attack_images=4096,
    ),
}
"""By name. ``paper`` is the paper's own as far as it says: network, 100 epochs (600 on LFWA),
weight decay, four seeds. The image size is inferred from the edge columns; the attackers' effort is
a guess of ours, and at every scale at most 300 people are to be recognised."""


def trained_otherwise(scale: Scale, **changed: Any) -> Scale:
    """The same size with other options of ``TrainConfig``."""
    return dataclasses.replace(scale, train=dataclasses.replace(scale.train, **changed))


def output(script: str, scale: str) -> Path:
    """Where a script's results lie: results of one size are not mixed with another's."""
    return Path(__file__).parent / "results" / f"{script}_{scale}.json"


def data_config(
    chosen: Scale,
    data_dir: str | None,
    cache_dir: str | None,
    dataset: str = "celeba",
    columns: str | None = None,
) -> DataConfig:
    """The images of a scale, from files or drawn.

    Args:
        chosen: the scale.
        data_dir: folder with the data set's files; not read where faces are drawn.
        cache_dir: folder for decoded images; None for the data set's default.
        dataset: as in ``DataConfig``.
        columns: likewise.

    Raises:
        UsageError: the scale needs real faces, and there is no folder.
    """
    return DataConfig(
        dataset="synthetic" if chosen.drawn else dataset,
        data_dir=None if chosen.drawn or data_dir is None else str(Path(data_dir).absolute()),
        cache_dir=None if chosen.drawn else cache_dir,
        columns=None if chosen.drawn else columns,
        image_size=chosen.image_size,
        train_examples=chosen.train_examples,
        test_examples=chosen.test_examples,
        device_resident=chosen.device_resident,
    )
