"""Networks and rows of fewer bits, between a cloud and its edge."""

import asyncio
import dataclasses
import functools
import secrets

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cloud_support import half, run_config, running, save_checkpoint
from edge_support import FakeCloud, M, client_of, honest, pictures

from facemix_jax import data, defenses, inference, models
from facemix_jax.serving import edge
from facemix_jax.serving.edge import AsyncEdgeClient, Connection


@pytest.mark.parametrize("defense", ["facemix", "none"])
def test_networks_in_bfloat16_are_served(tmp_path, root, monkeypatch, defense):
    monkeypatch.setitem(models.MODELS, "half", half)
    config = dataclasses.replace(
        run_config(network="half"),
        defense=defenses.DefenseConfig(defense=defense, group_size=M),
    )
    model, variables = save_checkpoint(tmp_path / "run", config=config)
    images = pictures(8)
    infer = jax.jit(functools.partial(inference.infer, model, defenses.none()))
    expected = infer(variables, jax.random.key(0), data.normalize(images))
    assert expected.dtype == jnp.bfloat16  # or this shows nothing

    async def go():
        async with running(tmp_path / "run") as cloud:
            connection = Connection(clouds=(f"127.0.0.1:{cloud.port}",))
            options = edge.EdgeConfig(spot_checks=2, unprotected=True)
            async with AsyncEdgeClient(tmp_path / "run", root, connection, options) as client:
                return await client.predict(images)

    found = asyncio.run(go())
    assert found.dtype == np.float32
    if defense == "none":
        expected = np.asarray(expected, np.float32)
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_travel_as_in_training_unless_told_otherwise(tmp_path, root, loop, dtype):
    config = run_config()
    defense = dataclasses.replace(config.defense, wire=dtype)
    config = dataclasses.replace(config, defense=defense)
    cloud = FakeCloud(loop, honest(*save_checkpoint(tmp_path / "run", config=config)))
    for options, expected in (({}, dtype), ({"wire": "float32"}, "float32")):
        with client_of((tmp_path / "run",), root, cloud.address, **options) as client:
            client.infer(pictures(4))
        assert cloud.requests[-1].activations.dtype == expected
    cloud.stop()


@pytest.mark.parametrize(("dtype", "bytes_of_one"), [("bfloat16", 2), ("int8", 1)])
def test_smaller_rows_give_nearly_the_same(trained, root, fake, monkeypatch, dtype, bytes_of_one):
    # The same keys for both, so that only the encoding differs.
    monkeypatch.setattr(secrets, "token_bytes", bytes)
    address, images, found = fake().address, pictures(16), {}
    for name in ("float32", dtype):
        with client_of(trained, root, address, wire=name) as client:
            found[name] = client.infer(images)
    exact, rounded = found["float32"], found[dtype]
    spread = exact.logits.std()
    off = np.abs(exact.logits - rounded.logits).max()
    assert 0 < off < 0.1 * spread
    shape = client.segments.spec.activation_shape
    scales = 4 * 16 * shape[-1] if dtype == "int8" else 0
    assert rounded.bytes_up == 16 * np.prod(shape) * bytes_of_one + scales
