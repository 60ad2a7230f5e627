import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import group_products, mixing
from facemix_jax._validate import UsageError

ORTHOGONAL = ("haar", "signed_permutation", "hadamard")
KEY = jax.random.key(0)


def key_for(family, groups=3, size=8, shuffle=True, seed=0):
    return mixing.sample_mix_key(
        jax.random.key(seed), groups, size, family=mixing.FAMILIES[family], shuffle=shuffle
    )


def orthogonality_error(matrix):
    product = matrix @ matrix.mT
    return float(jnp.abs(product - jnp.eye(matrix.shape[-1])[None]).max())


@pytest.mark.parametrize("family", ORTHOGONAL)
@pytest.mark.parametrize("size", [2, 8, 64])
def test_orthogonal_families_are_orthogonal(family, size):
    assert orthogonality_error(key_for(family, size=size).matrix) < 2e-6


def test_gaussian_matrices_are_not_orthogonal_but_inverted():
    key = key_for("gaussian")
    assert orthogonality_error(key.matrix) > 0.1
    np.testing.assert_allclose(
        key.matrix @ key.inverse, jnp.broadcast_to(jnp.eye(8), (3, 8, 8)), atol=2e-3
    )


def test_groups_have_different_matrices_and_keys_differ():
    key = key_for("haar", groups=4)
    flat = np.asarray(key.matrix).reshape(4, -1)
    assert np.abs(flat[:, None] - flat[None]).max(-1)[~np.eye(4, dtype=bool)].min() > 0.1
    assert not np.allclose(key.matrix, key_for("haar", groups=4, seed=1).matrix)


def test_haar_entries_have_the_variance_of_the_haar_measure():
    # Var of one entry is 1/M, of its square about 2/M^2 (Beta); 4,000 matrices: false alarm
    # below 1e-6 at 5 standard errors. Half and twice the variance are rejected.
    size, number = 4, 4000
    entries = np.asarray(key_for("haar", groups=number, size=size).matrix)[:, 0, 0]
    moment, error = np.mean(entries**2), np.sqrt(2 / size**2 / number)
    assert abs(moment - 1 / size) < 5 * error
    assert abs(moment - 0.5 / size) > 5 * error
    assert abs(moment - 2 / size) > 5 * error
    assert abs(np.mean(np.linalg.det(np.asarray(key_for("haar", groups=number).matrix)))) < 0.08


@pytest.mark.parametrize("size", [1, 2, 8, 64, 300])
def test_reflections_are_orthogonal(size):
    assert orthogonality_error(mixing.reflections(jax.random.key(0), 3, size)) < 3e-6


def test_reflections_have_the_moments_of_the_haar_measure():
    # E tr(Q) = 0, E tr(Q)^2 = 1, E tr(Q^2) = 1, E tr(Q)^4 = 3 from M = 4 on (Diaconis and
    # Shahshahani, 1994): of 40,000 matrices within 5 standard errors, false alarm below 3e-6.
    q = np.asarray(mixing.reflections(jax.random.key(1), 40_000, 4), float)
    trace = np.trace(q, axis1=1, axis2=2)
    square = np.trace(q @ q, axis1=1, axis2=2)
    for values, moment in ((trace, 0), (trace**2, 1), (square, 1), (trace**4, 3)):
        assert abs(values.mean() - moment) < 5 * values.std() / 200
    assert abs(np.linalg.det(q).mean()) < 5 / 200
    # The control: QR's own signs, which depend on the matrix, are not Haar.
    lopsided, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4000, 4, 4)))
    trace = np.trace(lopsided, axis1=1, axis2=2)
    assert abs(trace.mean()) > 5 * trace.std() / 4000**0.5


def exported(size, platform):
    run = jax.jit(lambda k, x: mixing.mix(mixing.sample_mix_key(k, 2, size), x))
    exported = jax.export.export(run, platforms=[platform])
    return exported(jax.random.key(0), jnp.ones((2 * size, 5))).mlir_module()


def test_a_gpu_draws_reflections_and_adds_rows_of_small_groups():
    assert "triangular_solve" in exported(8, "cuda")
    assert "triangular_solve" not in exported(8, "cpu")
    assert exported(8, "cuda").count("stablehlo.dot_general") == 2, "those of the reflections"
    assert exported(16, "cuda").count("stablehlo.dot_general") == 3


@pytest.mark.parametrize(
    ("capability", "by_parts"), [("7.5", 0), ("8.0", 1), ("12.1", 1), ("gfx942", 0)]
)
def test_a_gpu_that_multiplies_bfloat16_takes_small_groups_in_parts(
    monkeypatch, capability, by_parts
):
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert exported(8, "cuda").count("num_primitive_operations = 6") == by_parts
    assert exported(16, "cuda").count("num_primitive_operations = 6") == 0
    assert exported(8, "cpu").count("num_primitive_operations = 6") == 0


@pytest.mark.parametrize("way", [group_products.sum_of_rows, group_products.product_of_parts])
def test_small_groups_equal_a_product_and_so_do_their_gradients(way):
    matrix = mixing.reflections(jax.random.key(0), 1, 8)[0]
    x = jax.random.normal(jax.random.key(1), (8, 30))
    few = functools.partial(group_products._few, way)

    def value(mix_rows):
        return lambda m, x: jnp.sum(jnp.tanh(mix_rows(m, x)))

    wanted = jax.value_and_grad(value(group_products.product), (0, 1))(matrix, x)
    found = jax.value_and_grad(value(few), (0, 1))(matrix, x)
    chex.assert_trees_all_close(found, wanted, atol=1e-5)
    rounded = x.astype(jnp.bfloat16)
    assert few(matrix, rounded).dtype == jnp.float32
    np.testing.assert_allclose(
        few(matrix, rounded), group_products.product(matrix, rounded), atol=1e-6
    )
    slope = jax.grad(lambda x: jnp.sum(few(matrix, x).astype(jnp.bfloat16) ** 2))(rounded)
    assert slope.dtype == jnp.bfloat16
    whole = jax.grad(lambda x: jnp.sum(group_products.product(matrix, x) ** 2))(rounded)
    np.testing.assert_allclose(np.float32(slope), np.float32(whole), rtol=0.02, atol=0.03)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3, 2), (2, 2, 2, 2)])
def test_mix_equals_the_naive_loop_of_equation_4(shape):
    key = key_for("haar", groups=2, size=4)
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    mixed = np.zeros_like(x)
    for g in range(2):
        for k in range(4):
            for i in range(4):
                mixed[4 * g + k] += np.asarray(key.matrix)[g, k, i] * x[4 * g + i]
    np.testing.assert_allclose(mixing.mix(key, x), mixed[np.asarray(key.order)], atol=1e-5)


@pytest.mark.parametrize("family", mixing.FAMILIES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_unmix_inverts_mix(family, shuffle):
    key = key_for(family, shuffle=shuffle)
    x = jax.random.normal(jax.random.key(1), (24, 5, 3))
    chex.assert_trees_all_close(mixing.unmix(key, mixing.mix(key, x)), x, atol=1e-3)
    wrong = key_for(family, shuffle=shuffle, seed=2)
    assert float(jnp.abs(mixing.unmix(wrong, mixing.mix(key, x)) - x).mean()) > 0.3


def test_order_is_a_permutation_across_groups():
    order = np.asarray(key_for("haar", groups=16).order)
    assert sorted(order) == list(range(128))
    assert (order // 8 != np.arange(128) // 8).mean() > 0.5


def test_mixing_preserves_the_gram_matrix_of_pixels():
    # facts: C^T C = X^T X, the secret is only a rotation
    key = key_for("haar", groups=1, shuffle=False)
    x = jax.random.normal(jax.random.key(1), (8, 6))
    mixed = mixing.mix(key, x)
    np.testing.assert_allclose(mixed.T @ mixed, x.T @ x, atol=1e-4)


def test_mixing_is_float32_whatever_the_activations():
    key = key_for("haar")
    x = jnp.ones((24, 4), jnp.bfloat16)
    assert mixing.mix(key, x).dtype == jnp.float32


@pytest.mark.parametrize("function", [mixing.mix, mixing.unmix])
def test_products_ask_for_the_highest_precision(function):
    key = key_for("haar")
    jaxpr = str(jax.make_jaxpr(function)(key, jnp.ones((24, 4))))
    assert "Precision.HIGHEST" in jaxpr
    assert "dot_general" in jaxpr


def test_jit_grad_and_vmap_agree_with_plain_calls():
    x = jax.random.normal(jax.random.key(1), (24, 5))
    key = key_for("haar")
    np.testing.assert_allclose(jax.jit(mixing.mix)(key, x), mixing.mix(key, x), atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(mixing.mix(key, x) ** 2) / 2)(x)
    np.testing.assert_allclose(gradient, x, atol=1e-5)  # an isometry's energy
    draws = jax.vmap(lambda k: mixing.sample_mix_key(k, 3, 8))(
        jax.random.split(jax.random.key(0), 2)
    )
    both = jax.vmap(mixing.mix)(draws, jnp.stack([x, x]))
    one = jax.tree.map(lambda leaf: leaf[1], draws)
    np.testing.assert_allclose(both[1], mixing.mix(one, x), atol=1e-6)


def weight_gradients(family):
    """Equations 8 and 9: x^T dy, and x^T A^T A dy."""
    key = key_for(family, groups=1, shuffle=False)
    x_key, w_key, dy_key = jax.random.split(jax.random.key(3), 3)
    x, w = jax.random.normal(x_key, (8, 6)), jax.random.normal(w_key, (6, 5))
    dy = jax.random.normal(dy_key, (8, 5))
    _, plain = jax.vjp(lambda w: jnp.matmul(x, w, precision="highest"), w)
    _, mixed = jax.vjp(lambda w: jnp.matmul(mixing.mix(key, x), w, precision="highest"), w)
    return plain(dy)[0], mixed(mixing.mix(key, dy))[0]


@pytest.mark.parametrize("family", ORTHOGONAL)
def test_gradient_identity_of_equations_7_to_9(family):
    plain, mixed = weight_gradients(family)
    assert float(jnp.abs(plain - mixed).max()) < 1e-5


def test_gradient_identity_fails_for_gaussian_matrices():
    plain, mixed = weight_gradients("gaussian")
    assert float(jnp.abs(plain - mixed).max()) > 0.1


def test_pad_groups_keeps_the_batch_and_fills_with_its_own_rows():
    x = jnp.arange(5.0)[:, None]
    padded = mixing.pad_groups(x, 4)
    assert padded[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert mixing.pad_groups(x, 5) is x
    assert mixing.pad_groups(x[:1], 4)[:, 0].tolist() == [0, 0, 0, 0]


def test_repr_shows_no_secret():
    key = key_for("haar", groups=1)
    text = repr(key)
    assert "hidden" in text
    assert str(float(key.matrix[0, 0, 0]))[:6] not in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mixing.group(jnp.ones((10, 2)), 4), ("4", "10", "pad_groups")),
        (lambda: mixing.mix(key_for("haar"), jnp.ones((10, 2))), ("10", "24", "sample_mix_key")),
        (lambda: key_for("hadamard", size=6), ("6", "power of two", "haar")),
        (lambda: key_for("haar", size=0), ("0", "greater")),
        (lambda: mixing.mix(key_for("haar"), jnp.ones((24, 2), complex)), ("complex", "parts")),
        (lambda: mixing.unmix(key_for("haar"), jnp.ones((24, 2), complex)), ("complex", "parts")),
        (lambda: mixing.sample_mix_key(KEY, 6, 4, family="haa"), ("'haa'", "'haar'")),
    ],
)
def test_errors_name_value_limit_and_remedy(call, words):
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_family_is_known_by_its_name():
    named = mixing.sample_mix_key(KEY, 6, 4, family="hadamard")
    given = mixing.sample_mix_key(KEY, 6, 4, family=mixing.hadamard)
    np.testing.assert_array_equal(named.matrix, given.matrix)


def test_rows_are_dealt_within_their_block_and_come_back():
    x = jax.random.normal(jax.random.key(1), (24, 5))
    key = mixing.sample_mix_key(jax.random.key(0), 6, 4, deal_blocks=3)
    blocks = np.asarray(key.deal).reshape(3, 8)
    for index, block in enumerate(blocks):
        assert sorted(block) == list(range(8 * index, 8 * index + 8))
    assert len({tuple(block % 8) for block in blocks}) == 3, "every block is dealt anew"
    np.testing.assert_allclose(mixing.unmix(key, mixing.mix(key, x)), x, atol=1e-5)
    undealt = mixing.MixKey(key.matrix, key.inverse, key.order)
    assert np.abs(mixing.mix(key, x) - mixing.mix(undealt, x)).max() > 0.1


def test_blocks_are_whole_groups():
    with pytest.raises(UsageError, match="deal_blocks 4 does not divide num_groups 6"):
        mixing.sample_mix_key(jax.random.key(0), 6, 4, deal_blocks=4)
    with pytest.raises(
        UsageError, match=r"deal_blocks is -1, but must lie between 0 and 6\. Choose"
    ):
        mixing.sample_mix_key(jax.random.key(0), 6, 4, deal_blocks=-1)
