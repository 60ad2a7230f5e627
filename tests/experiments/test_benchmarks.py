"""Benchmarks: what is timed, what a training step costs at least, where results go."""

import argparse
import sys

import cuda_parts
import jax
import jax.numpy as jnp
import linearity_precision
import linearity_speed
import pytest
import separation_speed
import training_speed

from facemix_jax import costs, models, speed


def test_the_stem_is_timed_without_the_images_gradient():
    options = argparse.Namespace(image_size=(16, 12), width=4, batch_size=32, runs=2, layers=[])
    cases = cuda_parts.cases(options)
    for name, expected in (("stem", [False, True]), ("max_pool", [True, True])):
        ways, arguments = cases[name]
        for way in ways.values():
            _, gradients = jax.eval_shape(way, *arguments)
            found = {gradient.shape for gradient in gradients}
            assert [x.shape in found for x in arguments] == expected, name


@pytest.mark.parametrize("cut", [0, 1])
def test_passes_are_those_of_a_training_step(cut):
    model = models.resnet18(cut=cut, image_size=(40, 36), width=4, num_attributes=3)
    variables = jax.eval_shape(model.init, jax.random.key(0))

    def loss(variables, images):
        x = images
        for segment in ("pre", "main", "post"):
            x = getattr(model, segment).apply(variables[segment], x)
        return jnp.sum(x)

    images = jax.ShapeDtypeStruct((1, 40, 36, 3), jnp.float32)
    step = costs.linear_layers(jax.grad(loss), variables, images)
    counted = speed.passes(costs.model_cost(model, group_size=1))
    assert sum(passes for _, passes in counted) == len(step)
    assert [passes for _, passes in counted[:2]] == [2, 3]
    assert counted[0][0].input_size == 40 * 36 * 3


def test_the_floor_lacks_the_images_gradient(monkeypatch):
    monkeypatch.setattr(speed, "matmul_rate", lambda dtype: 1.0)
    monkeypatch.setattr(training_speed, "bandwidth", lambda num_bytes: 1e30)
    options = argparse.Namespace(image_size=(40, 36), width=4, batch_size=2, dtype="float32")
    cost = costs.model_cost(models.resnet18(image_size=(40, 36), width=4), group_size=1)
    flops = 2 * 2 * (3 * cost.macs - cost.pre.layers[0].macs)
    found = training_speed.floor(options)
    assert found["model_flops"] == flops
    assert found["products_s"] == found["floor_s"] == pytest.approx(flops)


class StoppedError(Exception):
    """Instead of measuring."""


@pytest.mark.parametrize(
    ("script", "work"),
    [
        (linearity_speed, (linearity_speed.models, "resnet18")),
        (linearity_precision, (linearity_precision, "table")),
        (separation_speed, (separation_speed, "mixtures_of")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_results_folder_is_made_before_anything_is_measured(
    tmp_path, monkeypatch, script, work
):
    def stop(*_, **__):
        raise StoppedError

    monkeypatch.setattr(*work, stop)
    path = tmp_path / "new" / "result.json"
    monkeypatch.setattr(sys, "argv", ["script.py", "--json", str(path)])
    arguments = [argparse.Namespace(json=path)] if script is separation_speed else []
    with pytest.raises(StoppedError):
        script.main(*arguments)
    assert path.parent.is_dir()
