"""The systems of the paper's Tables 2 and 3, and what the paper prints of them."""

from typing import NamedTuple

from facemix_jax.anonymizing import AnonymizerConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig

CLOUD, EDGE, ANONYMIZER = "all on the cloud", "all on the edge", "face anonymizer"


class System(NamedTuple):
    """One row.

    Attributes:
        model: at the standard width.
        defense: of what is sent.
        edge: its row in ``facemix_jax.costs_paper.resnet18_table``; None where there is none.
        table2: valid accuracy, test accuracy, person ID, attributes, as printed; or nothing.
        table3: test accuracy, balanced accuracy, faces, attributes, as printed; or nothing.
        anonymizer: what it is trained for, if it is one; the identifier has the scale's width.
    """

    model: ModelConfig
    defense: DefenseConfig
    edge: str | None = None
    table2: tuple[str, ...] = ()
    table3: tuple[str, ...] = ()
    anonymizer: AnonymizerConfig | None = None


_IMAGE = ModelConfig(cut=0)


def noise(variance: float) -> DefenseConfig:
    """Gaussian noise on normalised images."""
    return DefenseConfig(defense="noise", image_noise_variance=variance)


def blur(size: int) -> DefenseConfig:
    """Averages of ``size x size`` areas."""
    return DefenseConfig(defense="blur", blur_size=size)


def facemix(
    group_size: int, cut: int, *, table2: tuple[str, ...] = (), table3: tuple[str, ...] = ()
) -> System:
    """Mixing after ``cut`` blocks."""
    edge = f"FaceMix, N_pre = {cut}"
    return System(ModelConfig(cut=cut), DefenseConfig(group_size=group_size), edge, table2, table3)


SYSTEMS: dict[str, System] = {
    CLOUD: System(
        _IMAGE,
        DefenseConfig(defense="none"),
        CLOUD,
        ("91.6%", "91.0%", "85.5%", "79.3%"),
        ("91.1%", "87.1%", "-0.00", "87.1%"),
    ),
    "noise N(0, 4)": System(
        _IMAGE,
        noise(4),
        "noise N(0, 4)",
        ("89.2%", "88.6%", "46.5%", "73.1%"),
        ("88.5%", "82.5%", "-0.03", "82.7%"),
    ),
    "noise N(0, 8)": System(
        _IMAGE,
        noise(8),
        "noise N(0, 8)",
        ("88.5%", "87.9%", "35.3%", "70.8%"),
        ("87.7%", "81.3%", "-0.02", "81.4%"),
    ),
    "blurring 16x16": System(
        _IMAGE,
        blur(16),
        "blurring 16x16",
        ("89.6%", "89.0%", "52.2%", "73.1%"),
        ("88.8%", "83.4%", "-0.03", "83.6%"),
    ),
    "blurring 8x8": System(
        _IMAGE,
        blur(8),
        "blurring 8x8",
        ("87.9%", "87.3%", "25.6%", "68.7%"),
        ("87.0%", "80.6%", "-0.07", "77.8%"),
    ),
    ANONYMIZER: System(
        ModelConfig(network="anonymizer"),
        DefenseConfig(defense="none"),
        "face anonymizer, 256x256",
        ("90.5%", "89.8%", "62.6%", "76.3%"),
        anonymizer=AnonymizerConfig(),
    ),
    "FaceMix, M = 8, N_pre = 1": facemix(
        8,
        1,
        table2=("91.2%", "90.7%", "0.6%", "51.5%"),
        table3=("90.5%", "86.8%", "-0.37", "50.6%"),
    ),
    "FaceMix, M = 8, N_pre = 2": facemix(
        8,
        2,
        table2=("91.2%", "90.7%", "0.6%", "51.6%"),
        table3=("90.7%", "86.9%", "-0.37", "50.7%"),
    ),
    "FaceMix, M = 8, N_pre = 3": facemix(
        8,
        3,
        table2=("91.4%", "91.0%", "0.6%", "51.5%"),
        table3=("90.7%", "87.1%", "-0.37", "50.6%"),
    ),
}
PAPER_EDGE = {
    "table2": ("91.6%", "91.0%", "0.1%", "50.0%"),
    "table3": ("91.1%", "87.1%", "-0.56", "50.0%"),
}
"""The row in which nothing is sent."""

STRONGER: dict[str, System] = {
    "noise N(0, 1024)": System(_IMAGE, noise(1024)),
    "blurring 2x2": System(_IMAGE, blur(2)),
}
"""Noise and blurring that hide more than the paper's: what they cost even where they hide less than
FaceMix hides from the paper's attackers."""

SMOKE = (CLOUD, "noise N(0, 8)", "blurring 8x8", "FaceMix, M = 8, N_pre = 1")
"""One of each kind; the anonymizer's training takes too long for a smoke test."""
