"""The examples in docstrings run and give what stands there."""

import doctest
import importlib
from pathlib import Path

import pytest

import facemix_jax

PACKAGE = Path(facemix_jax.__file__).parent
MODULES = sorted(
    ".".join(("facemix_jax", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)
ENTRY_POINTS = {
    "mixing": ("sample_mix_key", "mix", "unmix", "group"),
    "metrics": (
        "attribute_counts",
        "accuracy",
        "balanced_accuracy",
        "matched_correlation",
        "assignment_mse",
        "psnr",
        "ssim",
        "amari_distance",
    ),
    "keys": ("RootSecret", "fresh_mix_key"),
    "costs": ("macs", "model_cost", "Link.seconds"),
    "linearity.end_to_end": ("measure",),
    "attacks.separation": ("separate",),
    "models.resnet": ("resnet18",),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_stands_there(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.FAIL_FAST)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_have_an_example(name):
    module = importlib.import_module(f"facemix_jax.{name}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    shown = {test.name for test in finder.find(module) if test.examples}
    assert {f"{module.__name__}.{entry}" for entry in ENTRY_POINTS[name]} <= shown


def test_a_wrong_example_fails():
    def wrong():
        """>>> 1 + 1
        3
        """

    (test,) = doctest.DocTestFinder().find(wrong, "wrong", globs={})
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(test, out=lambda text: None).failed == 1
