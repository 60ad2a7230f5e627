import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import defenses, gaussian_codes, mixing, models, training
from facemix_jax._validate import UsageError
from facemix_jax.data import normalize
from facemix_jax.models import resnet18
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax

CONFIG = TrainConfig(num_epochs=1, batch_size=16, learning_rate=3e-3, warmup_fraction=0.0)
FACEMIX = defenses.facemix(group_size=8)


@pytest.fixture(scope="module")
def model():
    return resnet18(image_size=(40, 36), width=4, num_attributes=3)


def batch_of(source, size=16, start=0):
    rows = np.arange(start, start + size)
    return source.images(rows), source.attributes[rows]


def leaves(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_a_step_is_traced_once_and_counts(model, tiny_source):
    state = training.init_state(model, CONFIG, 10)
    step = training.make_train_step(model, FACEMIX, CONFIG, 10)
    for _ in range(3):
        state, _ = step(state, *batch_of(tiny_source))
    assert step._cache_size() == 1
    assert int(state.step) == 3


def test_steps_repeat_exactly_and_differ_from_step_to_step(model, tiny_source):
    step = training.make_train_step(model, FACEMIX, CONFIG, 10)

    def losses(seed):
        config = dataclasses.replace(CONFIG, seed=seed, learning_rate=1e-12)
        state, found = training.init_state(model, config, 10), []
        for _ in range(2):
            state, info = step(state, *batch_of(tiny_source))
            found.append(float(info.loss))
        return found

    first = losses(0)
    assert first == losses(0)
    assert first != losses(1)


def test_half_of_the_images_are_mirrored_left_to_right(model, tiny_source, monkeypatch):
    class SeenError(Exception):
        pass

    def look(model, defense, variables, rng_key, images, **_):
        raise SeenError(np.asarray(images))

    def mirrored(*, step=0, seed=0, flip=True):
        """Which images the network is given mirrored; the others must be as they are."""
        config = dataclasses.replace(CONFIG, flip=flip)
        state = training.init_state(model, dataclasses.replace(config, seed=seed), 10)
        state = dataclasses.replace(state, step=state.step + step)
        with pytest.raises(SeenError) as caught:
            training.make_step(model, FACEMIX, config, 10)(
                state, images, attributes, training.Scalars.of(config)
            )
        (found,) = caught.value.args
        asis = (found == plain).all((1, 2, 3))
        turned = (found == plain[:, :, ::-1]).all((1, 2, 3))
        assert (asis ^ turned).all()
        return turned

    images, attributes = batch_of(tiny_source, size=192)
    plain = np.asarray(normalize(images))
    monkeypatch.setattr(training, "forward", look)
    first = mirrored()
    assert 0.35 < first.mean() < 0.65
    np.testing.assert_array_equal(first, mirrored())
    assert (first != mirrored(step=1)).any()
    assert (first != mirrored(seed=1)).any()
    assert not mirrored(flip=False).any()


def test_fresh_matrices_every_step(model, tiny_source):
    # Without learning or flips, only the matrices can change the loss.
    config = dataclasses.replace(CONFIG, learning_rate=1e-30, weight_decay=0.0, flip=False)
    for defense, changes in ((FACEMIX, True), (defenses.none(), False)):
        state = training.init_state(model, config, 10)
        step = training.make_train_step(model, defense, config, 10)
        losses = []
        for _ in range(3):
            state, info = step(state, *batch_of(tiny_source))
            losses.append(float(info.loss))
        assert (len(set(losses)) == 3) is changes


@pytest.mark.parametrize("defense", [FACEMIX, defenses.none()], ids=["facemix", "plain"])
def test_a_few_steps_learn_the_brightness(model, tiny_source, defense):
    state = training.init_state(model, CONFIG, 80)
    step = training.make_train_step(model, defense, CONFIG, 80)
    losses = []
    for index in range(80):
        images, attributes = batch_of(tiny_source, start=16 * (index % 8))
        # Only the learnable attribute, three times.
        state, info = step(state, images, attributes[:, [0, 0, 0]])
        losses.append(float(info.loss))
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])


def test_statistics_are_those_of_the_mixed_the_clean_or_both(model, tiny_source):
    images, _ = batch_of(tiny_source)
    x = jnp.asarray(images, jnp.float32) / 255.0
    variables = model.init(jax.random.key(0))
    rng_key = jax.random.key(5)
    clean_z, _ = model.pre.train(variables["pre"], x)
    secret = FACEMIX.init(rng_key, 16, True)
    seen = {
        "mixed": model.main.train(variables["main"], mixing.mix(secret, clean_z))[1],
        "clean": model.main.train(variables["main"], clean_z)[1],
    }
    assert not np.allclose(*(leaves(s["batch_stats"]) for s in seen.values()))
    for statistics in ("mixed", "clean"):
        _, new, _ = training.forward(model, FACEMIX, variables, rng_key, x, statistics=statistics)
        np.testing.assert_allclose(
            leaves(new["main"]["batch_stats"]), leaves(seen[statistics]["batch_stats"]), rtol=1e-4
        )
        assert "clean_stats" not in new["main"]
    both = {**variables["main"], "clean_stats": variables["main"]["batch_stats"]}
    _, new, _ = training.forward(
        model, FACEMIX, {**variables, "main": both}, rng_key, x, statistics="separate"
    )
    for name, statistics in (("batch_stats", "mixed"), ("clean_stats", "clean")):
        np.testing.assert_allclose(
            leaves(new["main"][name]), leaves(seen[statistics]["batch_stats"]), rtol=1e-4
        )


def test_the_isometry_regulariser_acts_on_main_alone(model, tiny_source):
    def step(weight, learning_rate=3e-3):
        config = dataclasses.replace(
            CONFIG, isometry=weight, learning_rate=learning_rate, weight_decay=0.0, flip=False
        )
        state = training.init_state(model, config, 10)
        before = float(models.isometry_penalty(state.variables["main"]["params"]))
        state, info = training.make_train_step(model, FACEMIX, config, 10)(
            state, *batch_of(tiny_source)
        )
        return before, state, float(info.loss)

    before, plain, loss = step(0.0)
    _, regularised, larger = step(10.0)
    np.testing.assert_allclose(larger - loss, 10 * before, rtol=1e-4)
    penalties = [
        models.isometry_penalty(state.variables["main"]["params"]) for state in (plain, regularised)
    ]
    assert penalties[1] < min(penalties[0], before)
    for segment in ("pre", "post"):
        np.testing.assert_allclose(
            leaves(plain.variables[segment]), leaves(regularised.variables[segment]), atol=1e-6
        )


def test_no_two_draws_of_a_step_share_a_key():
    """Neither the keys nor what they become when they are split."""

    def found(keys):
        derived = [*keys, *(key for parent in keys for key in jax.random.split(parent, 8))]
        return [tuple(jax.random.key_data(key).tolist()) for key in derived]

    step_key = jax.random.key(7)
    distinct = found([step_key, *training._keys(step_key)])
    # The step's own first two children are the keys of flips and of the defence.
    assert len(set(distinct)) == len(distinct) - 2
    flips_and_defence = jax.random.split(step_key)
    assert distinct[1:3] == found(flips_and_defence)[:2], "runs without penalties keep their bits"
    folded = jax.random.split(jax.random.fold_in(step_key, 1))
    shared = found([*flips_and_defence, *folded])
    assert len(set(shared)) < len(shared), "the search finds keys that are used twice"


def test_the_discriminator_starts_from_a_key_that_no_segment_has(model, monkeypatch):
    keys = []
    draw = gaussian_codes.init_discriminator
    monkeypatch.setattr(
        gaussian_codes,
        "init_discriminator",
        lambda rng_key, channels: keys.append(rng_key) or draw(rng_key, channels),
    )
    training.init_state(model, dataclasses.replace(CONFIG, discriminator_weight=1.0), 10)
    init_key, _ = jax.random.split(jax.random.key(CONFIG.seed))
    (judge_key,) = (jax.random.key_data(key) for key in keys)
    others = jax.random.key_data(jax.random.split(init_key, 64))
    assert not (others == judge_key).all(1).any()
    assert (others == jax.random.key_data(jax.random.fold_in(init_key, 1))).all(1).any()


def test_cross_entropy_of_uniform_logits_is_log_2():
    logits, labels = jnp.zeros((4, 3, 2)), jnp.zeros((4, 3), jnp.int8)
    assert abs(float(training.cross_entropy(logits, labels)) - np.log(2)) < 1e-6


def test_learning_rate_rises_and_falls_to_zero():
    config = dataclasses.replace(CONFIG, warmup_fraction=0.1)
    rate = training.learning_rate(config, 100)
    values = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    assert values[0] == 0
    assert values[2] == pytest.approx(3e-3)
    assert values[1] == pytest.approx(1.5e-3)
    assert values[3] == pytest.approx(1.5e-3)
    assert values[4] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("fraction", "num_steps"), [(1.0, 4), (0.9, 4), (1.0, 1), (0.5, 1)])
def test_the_last_step_is_left_to_the_cosine_whatever_the_warm_up(fraction, num_steps):
    config = dataclasses.replace(CONFIG, warmup_fraction=fraction)
    rate = training.learning_rate(config, num_steps)
    values = [float(rate(step)) for step in range(num_steps + 1)]
    assert values[num_steps - 1] == pytest.approx(3e-3)
    assert values[num_steps] == pytest.approx(0, abs=1e-9)
    assert values == sorted(values[:-1]) + values[-1:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adam_b2": 1.0}, ("adam_b2 is 1.0", "below 1", "0.999")),
        ({"adam_b2": 1 - 1e-9}, ("adam_b2 is 0.999999999", "below 1")),
        ({"learning_rate": float("inf")}, ("learning_rate is inf", "finite")),
        ({"learning_rate": 1e39}, ("learning_rate is 1e+39", "finite number, also in float32")),
        ({"weight_decay": float("inf")}, ("weight_decay is inf", "finite")),
        ({"isometry": float("nan")}, ("isometry is nan",)),
        ({"batch_size": 0}, ("batch_size", "0")),
        ({"learning_rate": -1.0}, ("learning_rate", "-1.0")),
        ({"warmup_fraction": 2.0}, ("warmup_fraction", "between 0 and 1")),
        ({"statistics": "both"}, ("both", "separate")),
        ({"isometry": -0.1}, ("isometry", "-0.1")),
        ({"seed": 2**33}, ("seed", "4294967295")),
    ],
)
def test_errors_name_value_limit_and_remedy(options, words):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**options)
    for word in words:
        assert word in str(caught.value)


def test_runs_that_differ_in_what_is_not_compiled_share_one_function(model):
    """JAX compiles again for every new function, so that equal ones must be the same one."""
    defense, config = defenses.facemix(group_size=4), TrainConfig(batch_size=8)
    step = training.make_step(model, defense, config, 10)
    other = dataclasses.replace(config, seed=1, learning_rate=0.1, weight_decay=0.0)
    assert training.make_step(model, defense, other, 10) is step
    for different in ({"isometry": 0.1}, {"flip": False}, {"statistics": "clean"}):
        changed = dataclasses.replace(config, **different)
        assert training.make_step(model, defense, changed, 10) is not step
    assert training.make_step(model, defense, config, 11) is not step
