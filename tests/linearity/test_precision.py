import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import linearity, mixing
from facemix_jax.linearity import precision

X = jax.random.normal(jax.random.key(0), (16, 30))


def test_tf32_would_be_seen_and_ours_asks_for_more():
    (row,) = precision.mixing_errors(
        X, rng_key=jax.random.key(1), group_sizes=(8,), dtypes=("float32",), precisions=("default",)
    )
    assert row["ours"] < 1e-6
    assert row["plain_tf32_emulated"] > 1e-4
    # A CPU computes float32 as float32; what an accelerator is asked for stands in the program.
    key = mixing.sample_mix_key(jax.random.key(1), 2, 8)
    with jax.default_matmul_precision("default"):
        assert "HIGHEST" in str(jax.make_jaxpr(mixing.mix)(key, X))


def test_errors_follow_the_dtype_and_a_refusal_is_reported():
    rows = precision.mixing_errors(
        X,
        rng_key=jax.random.key(1),
        group_sizes=(8,),
        dtypes=("float64", "float32", "float16", "bfloat16"),
        precisions=("highest",),
    )
    assert [r["ours"] for r in rows] == sorted(r["ours"] for r in rows)
    assert rows[0]["ours"] < 1e-14

    def build(dtype):
        if dtype == jnp.bfloat16:
            raise NotImplementedError("no bfloat16 here")
        return lambda x: x * jnp.asarray(1.1, dtype)

    rows = precision.main_errors(
        build,
        X,
        rng_key=jax.random.key(1),
        group_sizes=(2, 4),
        fan_ins=(1,),
        dtypes=("float64", "float32", "bfloat16"),
    )
    assert [r["group_size"] for r in rows] == [2, 4] * 3
    for row in rows[:4]:
        assert row["bound"] / 10 < row["mean"] < row["bound"]
    for row in rows[4:]:
        assert row["mean"] is None
        assert row["unavailable"] == "no bfloat16 here"


def test_rows_hold_none_where_results_leave_the_range_of_a_dtype_or_one_key_has_no_spread():
    options = {"rng_key": jax.random.key(1), "group_sizes": (4,)}
    half, single = options | {"dtypes": ("float16",)}, options | {"dtypes": ("float32",)}
    (over,) = precision.main_errors(lambda dtype: lambda x: x * 6e4 * 6e4, X, **half)
    (mixed,) = precision.mixing_errors(6e4 * X, precisions=("highest",), **half)
    (one,) = precision.main_errors(lambda dtype: jnp.tanh, X, num_keys=1, **single)
    assert (over["mean"], over["standard_deviation"], mixed["plain"]) == (None, None, None)
    assert one["mean"] > 0
    assert one["standard_deviation"] is None


def test_every_order_of_summation_gives_the_sum():
    # Of 3 and 6 terms one is left over when they are paired.
    found = [
        *precision.order_errors(X, rng_key=jax.random.key(1), group_sizes=(2, 16)),
        *precision.order_errors(X[:12], rng_key=jax.random.key(1), group_sizes=(3, 6)),
    ]
    for row in found:
        for name in ("product", "one_after_another", "pairwise"):
            assert 1e-9 < row[name] < 1e-6


@pytest.mark.parametrize("number", [1.0, 30.0])
def test_conditioned_family_has_its_condition_number(number):
    matrix, inverse = precision.conditioned(number)(jax.random.key(0), 3, 6)
    np.testing.assert_allclose(jnp.linalg.cond(matrix), number, rtol=1e-3)
    product = jnp.matmul(matrix, inverse, precision="highest")
    np.testing.assert_allclose(product, jnp.broadcast_to(jnp.eye(6), (3, 6, 6)), atol=1e-5)


def test_rows_are_measured_with_the_keys_that_were_given():
    rows = precision.main_errors(
        lambda dtype: jnp.tanh,
        X,
        rng_key=jax.random.key(1),
        group_sizes=(4,),
        dtypes=("float32",),
        num_keys=3,
        family=mixing.gaussian,
    )
    error = linearity.measure(
        jnp.tanh,
        X,
        rng_key=jax.random.key(1),
        group_size=4,
        num_keys=3,
        family=mixing.gaussian,
    )
    assert rows[0]["mean"] == pytest.approx(error.mean)
    assert "bound" not in rows[0]


def test_the_bound_takes_the_condition_of_the_matrices():
    def build(dtype):
        return lambda x: x * jnp.asarray(1.1, dtype)

    bounds = []
    for family in (mixing.haar, precision.conditioned(1000.0)):
        (row,) = precision.main_errors(
            build,
            X,
            rng_key=jax.random.key(1),
            group_sizes=(8,),
            fan_ins=(1,),
            dtypes=("bfloat16",),
            family=family,
        )
        assert row["bound"] / 10 < row["mean"] < row["bound"]
        bounds.append(row["bound"])
    assert bounds[1] > 30 * bounds[0]
