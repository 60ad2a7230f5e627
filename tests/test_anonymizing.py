"""The face anonymizer: its network, its loss, its work directory."""

import dataclasses
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facemix_jax import (
    anonymizing,
    checkpoint,
    claims,
    cli,
    costs,
    costs_paper,
    data,
    defenses,
    fitting,
    inference,
    runs,
    training,
)
from facemix_jax._validate import UsageError
from facemix_jax.anonymizing import AnonymizerConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig, anonymizer
from facemix_jax.models.anonymizer import angular_logits, from_unit, to_unit
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax

OPTIONS = AnonymizerConfig(identifier_width=4)


def run_config(**train):
    train = {"num_epochs": 1, "batch_size": 32, "log_every": 2, "checkpoint_every": 2, **train}
    return RunConfig(
        model=ModelConfig(network="anonymizer", width=2),
        defense=DefenseConfig(defense="none"),
        train=TrainConfig(**train),
    )


class People:
    """The tiny source with four people in training, who differ in one corner."""

    def __init__(self, source):
        self._source = source
        self.identities = (np.arange(len(source)) % 4).astype(np.int32)
        images = source.images(np.arange(len(source))).copy()
        images[:, :8, :8] = 60 * self.identities[:, None, None, None]
        self._images = images

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def images(self, indices):
        return self._images[indices]


@pytest.fixture(scope="module")
def source(tiny_source):
    return People(tiny_source)


# The network.


def test_what_is_sent_are_images_of_the_same_size_and_range():
    image_size = (41, 34)  # padded to 44 x 36 and cropped
    model = anonymizer(image_size=image_size, width=2, num_blocks=1)
    variables = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, *image_size, 3))
    pre = jax.jit(model.pre.apply)
    sent = pre(variables["pre"], images)
    assert model.spec.activation_shape == (*image_size, 3)
    assert sent.shape == images.shape
    assert float(jnp.abs(to_unit(sent)).max()) <= 1 + 1e-5
    # Examples stay apart, and the picture matters.
    other = pre(variables["pre"], images.at[1].set(0.0))
    np.testing.assert_allclose(sent[0], other[0], atol=1e-4)
    assert float(jnp.abs(sent[0] - sent[1]).max()) > 1e-3


def test_units_are_each_others_inverse():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 3))
    np.testing.assert_allclose(from_unit(to_unit(x)), x, atol=1e-5)
    grey = to_unit(jnp.asarray([0.485, 0.456, 0.406]).reshape(1, 1, 3) * 0.0)
    np.testing.assert_allclose(grey.ravel(), 2 * np.array([0.485, 0.456, 0.406]) - 1, atol=1e-6)


def test_the_edge_holds_the_papers_generator_and_the_cloud_a_whole_resnet18():
    cost = costs.model_cost(anonymizer(image_size=(256, 256)), group_size=1)
    (row,) = (r.figures for r in costs_paper.resnet18_table() if "anonymizer" in r.name)
    assert cost.pre.parameters == row["parameters"].derived == 11_378_179
    assert cost.pre.macs == row["macs_all"].derived
    assert cost.main.parameters + cost.post.parameters == 11_207_952
    # 109x89 images are padded to 112x92.
    small = costs.model_cost(anonymizer(image_size=(109, 89)), group_size=1)
    fitting = costs.model_cost(anonymizer(image_size=(112, 92)), group_size=1)
    assert small.pre.macs == fitting.pre.macs


# The loss.


def test_margin_makes_the_true_angle_larger_and_nothing_else():
    rng = np.random.default_rng(0)
    features, people = rng.standard_normal((2, 50, 8)).astype(np.float32)
    labels = rng.integers(0, 50, 50)
    plain = np.asarray(angular_logits(features, people, None, margin=0.4, scale=1.0))
    moved = np.asarray(angular_logits(features, people, labels, margin=0.4, scale=1.0))
    rows = np.arange(50)
    angles = np.arccos(plain[rows, labels])
    inside = angles + 0.4 < np.pi
    expected = np.cos(angles + 0.4)
    np.testing.assert_allclose(moved[rows, labels][inside], expected[inside], atol=1e-5)
    assert (moved[rows, labels] < plain[rows, labels]).all()
    others = np.ones_like(plain, bool)
    others[rows, labels] = False
    np.testing.assert_array_equal(moved[others], plain[others])
    again = angular_logits(7 * features, 3 * people, labels, margin=0.4, scale=5.0)
    np.testing.assert_allclose(again, 5 * moved, atol=1e-4)


def test_a_larger_angle_never_gets_a_larger_logit():
    angles = np.linspace(0.01, np.pi - 0.01, 200)
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    people, labels = np.array([[1.0, 0.0]], np.float32), np.zeros(200, np.int32)
    logits = np.asarray(angular_logits(features, people, labels, margin=0.5, scale=1.0))[:, 0]
    # But for the step where the margin's two branches meet.
    assert (np.diff(logits) < 0).sum() >= 198


# Training.


def test_a_step_changes_both_sides(source):
    model = anonymizer(image_size=(40, 36), width=2, num_attributes=3, num_blocks=1)
    train = TrainConfig(batch_size=16, warmup_fraction=0.0)
    state = anonymizing.init_state(model, OPTIONS, train, 4, num_people=4)
    before = jax.tree.map(np.array, (state.variables, state.identifier))
    step = anonymizing.make_step(model, OPTIONS, train, 4)
    rows = np.arange(16)
    state, info = step(state, source.images(rows), source.attributes[rows], source.identities[rows])
    for part, after in zip(before, (state.variables, state.identifier), strict=True):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), part, after)
        assert all(jax.tree.leaves(moved))
    assert all(np.isfinite(float(getattr(info, f.name))) for f in dataclasses.fields(info))
    assert 0 < float(info.distance) < 2


def test_the_generator_learns_from_all_losses(source):
    """A step computes it once; here the losses are written down as the module has them."""
    model = anonymizer(image_size=(40, 36), width=2, num_attributes=3, num_blocks=1)
    train = TrainConfig(batch_size=16, warmup_fraction=0.0, flip=False)
    before = anonymizing.init_state(model, OPTIONS, train, 4, num_people=4)
    variables, opt_state = jax.tree.map(np.array, (before.variables, before.opt_state["network"]))
    statistics = jax.tree.map(np.array, before.identifier["batch_stats"])
    rows = np.arange(16)
    people, attributes = source.identities[rows] % 4, source.attributes[rows]
    step = anonymizing.make_step(model, OPTIONS, train, 4)
    after, _ = step(before, source.images(rows), attributes, people)
    x = data.normalize(source.images(rows))
    encoder = anonymizing.identifier_model(model, OPTIONS).main
    identifier = after.identifier["params"]

    def loss(generator, adversary):
        changed = model.pre({"params": generator}, x)
        features, _ = model.main.train(variables["main"], changed)
        found = training.cross_entropy(model.post(variables["post"], features), attributes)
        both = {"params": identifier["encoder"], "batch_stats": statistics}
        features, _ = encoder.train(both, jnp.concatenate([x, changed]))
        margin = {"margin": OPTIONS.margin, "scale": OPTIONS.scale}
        named = angular_logits(features, identifier["people"], None, **margin)[16:]
        missed = optax.softmax_cross_entropy_with_integer_labels(named, people).mean()
        distance = jnp.abs(to_unit(changed) - to_unit(x)).mean()
        return found + OPTIONS.closeness_weight * distance - adversary * missed

    gradient = jax.jit(jax.grad(loss))
    params = {name: part["params"] for name, part in variables.items()}
    rate = float(training.learning_rate(train, 4)(0))

    def agreement(adversary):
        """Share of kernels' entries; Adam's first step is the rate times the gradient's sign."""
        zeros = jax.tree.map(np.zeros_like, params)
        gradients = {**zeros, "pre": gradient(params["pre"], adversary)}
        updates, _ = anonymizing._optimizer(train, 4).update(gradients, opt_state, params)
        moved = jax.tree.map(lambda new, old: new - old, after.variables["pre"], variables["pre"])
        pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(updates["pre"]), strict=True)
        # Biases before a norm have no gradient but rounding.
        return np.mean([np.mean(np.abs(a - b) < 0.05 * rate) for a, b in pairs if a.ndim == 4])

    assert agreement(OPTIONS.adversary_weight) > 0.97
    assert agreement(0.0) < 0.93  # the control: the identifier has its say


@pytest.mark.slow
def test_a_work_directory_is_evaluated_like_any_other(tmp_path, source):
    state = anonymizing.fit(run_config(), OPTIONS, tmp_path / "run", source=source)
    assert int(state.step) == 4
    config = runs.read_config(tmp_path / "run")
    model = runs.build_model(config, source)
    variables, _ = checkpoint.restore_variables(
        tmp_path / "run" / "checkpoints",
        runs.identity(config, model),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    jax.tree.map(np.testing.assert_array_equal, variables, state.variables)
    images = jnp.zeros((2, 40, 36, 3))
    logits = inference.infer(model, defenses.none(), variables, jax.random.key(0), images)
    assert logits.shape == (2, 3, 2)


def test_images_lie_on_the_device_where_asked(tmp_path, source, monkeypatch):
    class TakenError(Exception):
        pass

    def take(found):
        assert found is source
        raise TakenError

    monkeypatch.setattr(data, "on_device", take)
    config = dataclasses.replace(run_config(), data=data.DataConfig(device_resident=True))
    with pytest.raises(TakenError):
        anonymizing.fit(config, OPTIONS, tmp_path / "run", source=source)


def test_large_numbers_of_people_take_no_memory(tmp_path, source, monkeypatch):
    class TakenError(Exception):
        pass

    def step(state, images, attributes, classes):
        seen.append(classes)
        raise TakenError

    seen = []
    monkeypatch.setattr(anonymizing, "check", lambda *args: None)
    monkeypatch.setattr(anonymizing, "init_state", lambda *args, **more: SimpleNamespace(step=0))
    monkeypatch.setattr(anonymizing, "make_step", lambda *args: step)
    large = People(source)
    large.identities = source.identities + np.int32(10**7)
    tracemalloc.start()
    try:
        for name, each in (("small", source), ("large", large)):
            with pytest.raises(TakenError):
                anonymizing.fit(run_config(), OPTIONS, tmp_path / name, source=each)
        assert tracemalloc.get_traced_memory()[1] < 2e7, "four bytes for each number are 4e7"
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(*seen)
    assert set(seen[0]) == {0, 1, 2, 3}


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, source):
    whole = anonymizing.fit(run_config(), OPTIONS, tmp_path / "whole", source=source)

    class StopError(Exception):
        pass

    def stop(text):
        if text.startswith("step 4"):
            raise StopError

    with pytest.raises(StopError):
        anonymizing.fit(run_config(), OPTIONS, tmp_path / "part", source=source, say=stop)
    resumed = anonymizing.fit(run_config(), OPTIONS, tmp_path / "part", source=source)
    for name in ("variables", "identifier"):
        jax.tree.map(np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name))
    other = dataclasses.replace(OPTIONS, margin=0.1)
    with pytest.raises(UsageError, match="other options"):
        anonymizing.fit(run_config(), other, tmp_path / "part", source=source)
    (tmp_path / "part" / "anonymizer.json").write_text("{")
    with pytest.raises(UsageError, match="other options"):
        anonymizing.fit(run_config(), OPTIONS, tmp_path / "part", source=source)


def test_options_that_were_lost_are_not_made_up(tmp_path, source):
    """``facemix train`` leaves none either."""
    with claims.alone(tmp_path, run_config()):
        (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no anonymizer.json.*another --workdir, or restore"):
        anonymizing.fit(run_config(), OPTIONS, tmp_path, source=source)
    assert not (tmp_path / claims.ANONYMIZER).exists()
    anonymizing._claim_options(tmp_path / claims.ANONYMIZER, OPTIONS, None)
    anonymizing.check(run_config(log_every=9), tmp_path, source.image_size)
    with pytest.raises(UsageError, match="holds a run of 'facemix anonymize'"):
        fitting.fit(run_config(), tmp_path, source=source)


def test_a_network_that_is_not_finite_is_not_saved(tmp_path, source, monkeypatch):
    fields = [field.name for field in dataclasses.fields(anonymizing.AnonymizerInfo)]

    def step(state, *batch):
        broken = jax.tree.map(lambda leaf: leaf * np.nan, state.variables)
        info = anonymizing.AnonymizerInfo(**dict.fromkeys(fields, np.float32(1)))
        return dataclasses.replace(state, step=state.step + 1, variables=broken), info

    monkeypatch.setattr(anonymizing, "make_step", lambda *parts: step)
    with pytest.raises(fitting.DivergedError, match="network holds NaN or infinities"):
        anonymizing.fit(run_config(), OPTIONS, tmp_path / "run", source=source)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is None


def test_images_that_cannot_be_scored_are_refused_before_training(
    tmp_path, source, monkeypatch, capsys
):
    untested = People(source)
    untested.splits = {**source.splits, "test": np.arange(0)}
    monkeypatch.setattr(data, "load_source", lambda config: untested)
    monkeypatch.setattr(anonymizing, "fit", lambda *args, **options: pytest.fail("it trains"))
    assert cli.main(["anonymize", "--workdir", str(tmp_path / "run")]) == 2
    assert "Split 'test' of tiny has 0 images" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["adversary_weight", "closeness_weight", "scale"])
def test_weights_are_finite(name):
    with pytest.raises(UsageError, match=f"{name} is inf, but must be a finite number"):
        AnonymizerConfig(**{name: float("inf")})


def test_other_networks_are_refused(tmp_path, source):
    with pytest.raises(UsageError, match="resnet18"):
        anonymizing.fit(RunConfig(), OPTIONS, tmp_path / "run", source=source)


@pytest.mark.parametrize(
    ("part", "options", "words"),
    [
        ("model", {"tile": (8, 8)}, r"tile is \(8, 8\)"),
        ("model", {"centre": True}, "centre is True"),
        ("defense", {"noise": 0.5}, "noise is 0.5"),
        ("defense", {"wire": "int8"}, "wire is 'int8'"),
        ("defense", {"family": "gaussian"}, "family is 'gaussian'.*--family out"),
        ("defense", {"blur_size": 8}, "blur_size is 8"),
        ("train", {"isometry": 0.1}, "isometry is 0.1"),
        ("train", {"statistics": "separate"}, r"statistics is 'separate'.*'mixed' only.*--stat"),
        ("data", {"distinct_people": True}, r"distinct_people is True.*--distinct-people out"),
        ("mesh", {"data_devices": 1}, "data_devices is 1"),
        ("mesh", {"model_devices": 2}, r"model_devices is 2.*one device"),
    ],
)
def test_options_that_this_training_lacks_are_refused(tmp_path, source, part, options, words):
    config = run_config()
    changed = dataclasses.replace(getattr(config, part), **options)
    with pytest.raises(UsageError, match=words):
        anonymizing.fit(
            dataclasses.replace(config, **{part: changed}), OPTIONS, tmp_path / "run", source=source
        )
    assert not (tmp_path / "run").exists()


def test_nesterov_momentum_changes_both_sides_updates():
    def updates(nesterov):
        optimizer = anonymizing._optimizer(TrainConfig(nesterov=nesterov, warmup_fraction=0.0), 4)
        params = {"w": jnp.ones(3)}
        found, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
        return np.asarray(found["w"])

    assert not np.allclose(updates(True), updates(False))


@pytest.mark.slow
def test_the_adversary_keeps_the_identifier_from_naming_people(source):
    """Four people of one corner each: with the adversary off, they are named."""
    model = anonymizer(image_size=(40, 36), width=4, num_attributes=3, num_blocks=1)
    found = {}
    for weight in (0.0, 1.0):
        config = AnonymizerConfig(adversary_weight=weight, closeness_weight=0.5, identifier_width=8)
        train = TrainConfig(batch_size=32, learning_rate=3e-3, flip=False)
        state = anonymizing.init_state(model, config, train, 150, num_people=4)
        step = anonymizing.make_step(model, config, train, 150)
        rng = np.random.default_rng(0)
        named = []
        for _ in range(150):
            rows = rng.choice(128, 32, replace=False)
            state, info = step(
                state, source.images(rows), source.attributes[rows], source.identities[rows]
            )
            named.append(float(info.identified))
        found[weight] = np.mean(named[-30:])
    assert found[0.0] > 0.8
    assert found[1.0] < found[0.0] - 0.2
