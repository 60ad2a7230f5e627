"""Functions as ONNX graphs: calls are written out, loops refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax._validate import UsageError

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
onnx_graph = pytest.importorskip("facemix_jax.onnx_graph")


@jax.custom_vjp
def halved(x):
    return 0.5 * x


halved.defvjp(lambda x: (halved(x), None), lambda _, g: (0.5 * g,))


KERNEL = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y), x)


def onnx_of(function, shape):
    (groups,) = jax.export.symbolic_shape("G")
    like = {n: jax.ShapeDtypeStruct((groups, *shape), jnp.float32) for n in ("a", "b")}
    return onnx_graph.model(lambda a, b: function(a) + b, like, "c", producer="test")


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (jax.jit(lambda x: jax.nn.relu(x) + halved(x)), (3,)),
        (jax.checkpoint(lambda x: jnp.maximum(x @ KERNEL, 0) @ KERNEL), (3,)),
        (lambda x: x @ jax.jit(looped)(KERNEL), (3,)),
        (lambda x: x @ KERNEL, (4, 5, 3)),
    ],
    ids=["calls", "rematerialised", "loop-over-what-is-known", "dense-on-a-map"],
)
def test_functions_within_functions_are_written_out(function, shape):
    content = onnx_of(function, shape)
    values = np.random.default_rng(1).normal(size=(2, 2, *shape)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(content).run(None, dict(zip("ab", values, strict=True)))
    expected = np.asarray(function(values[0])) + values[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: 2 * y, x), "'scan'"),
        (jax.checkpoint(lambda x: jax.lax.map(jax.nn.relu, x.mT).mT), "'scan'"),
        (lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), "'while'"),
        (lambda x: jnp.einsum("gij,ik->gjk", x, KERNEL), "form of 'dot_general'"),
    ],
    ids=["loop", "map", "while", "product-over-another-axis"],
)
def test_loops_and_other_products_are_refused(function, words):
    with pytest.raises(UsageError, match=rf"(?s){words}.*StableHLO"):
        onnx_of(function, (3, 3))
