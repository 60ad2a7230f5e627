"""Osia et al.: principal components, against scikit-learn, and Siamese fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from facemix_jax import attacks, costs, data, defenses, inference, osia, training
from facemix_jax._validate import DataError, UsageError
from facemix_jax.attacks import suite
from facemix_jax.models import resnet18, vgg16

pytestmark = pytest.mark.library_promotes  # Optax


@pytest.fixture(scope="module")
def system(tiny_source):
    """A network of width 4 cut after the second stage: maps of 5 x 5 x 8."""
    model = resnet18(cut=5, image_size=(40, 36), width=4, num_attributes=3)
    return model, model.init(jax.random.key(0)), tiny_source


def logits_of(model, variables, images):
    return inference.infer(
        model, defenses.none(), variables, jax.random.key(0), data.normalize(images)
    )


@pytest.mark.parametrize("shape", [(30, 200), (200, 30)])
def test_components_are_those_of_scikit_learn(shape):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * np.linspace(1, 3, shape[1]) + 5).astype(np.float32)
    found, other = osia.principal_components(x, 6), PCA(6, svd_solver="full").fit(x)
    np.testing.assert_allclose(found.mean, other.mean_, atol=1e-4)
    np.testing.assert_allclose(found.variances, other.explained_variance_, rtol=1e-4)
    assert found.share == pytest.approx(other.explained_variance_ratio_.sum(), rel=1e-4)
    cosines = np.abs((found.axes * other.components_).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_as_many_components_as_images_are_refused(system):
    """Forty deviations from their own mean span 39 dimensions."""
    model, variables, source = system
    with pytest.raises(UsageError, match="components is 40, but must lie between 1 and 39"):
        osia.reduce(model, variables, source, components=40, max_images=40)
    with pytest.raises(UsageError, match=r"only 1\. Give more than 3"):
        osia.reduce(model, variables, source, components=3, max_images=1)
    x = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    assert osia.principal_components(x, 4).variances.min() > 0.01
    for wrong in (x, x.repeat(5, axis=0)[:, :4]):
        with pytest.raises(UsageError, match="components is 5, but must lie between 1 and 4"):
            osia.principal_components(wrong, 5)
    with pytest.raises(UsageError, match="max_images is 0"):
        osia.reduce(model, variables, source, components=4, max_images=0)


def test_activations_without_components_are_refused(system):
    model, variables, source = system
    for change, words in ((np.nan, "hold NaN"), (np.inf, "hold NaN"), (0.0, "no variance")):
        pre = jax.tree.map(lambda a, change=change: a * change, variables["pre"])
        with pytest.raises(DataError, match=words):
            osia.reduce(model, {**variables, "pre": pre}, source, components=4, max_images=40)
    level = np.full((20, 9), 5.3, np.float32)
    level[10:] = np.nextafter(level[10:], np.float32(6))
    with pytest.raises(DataError, match="all 20 images are the same"):
        osia.principal_components(level, 2)


def test_networks_with_tiles_are_refused(system):
    _, variables, source = system
    tiled = resnet18(cut=1, image_size=(40, 36), width=4, num_attributes=3, tile=(5, 5))
    with pytest.raises(UsageError, match="4 tiles"):
        osia.reduce(tiled, variables, source, components=4)
    with pytest.raises(UsageError, match="4 tiles"):
        osia.finetune(tiled, variables, source, osia.SiameseConfig(attribute="Bright"))


def test_codes_have_unit_variance_and_their_number(system):
    model, variables, source = system
    reduced, fitted = osia.reduce(model, variables, source, components=6)
    images = data.normalize(source.images(source.splits["train"]))
    codes = np.asarray(reduced.pre(fitted["pre"], images))
    assert codes.shape[1:] == reduced.spec.activation_shape == (1, 1, 6)
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-3)
    assert codes.var(0, ddof=1).mean() == pytest.approx(1, rel=1e-3)
    covariance = np.cov(codes.reshape(-1, 6).T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3


def test_all_components_change_nothing_and_few_do(system):
    """Images that were fitted lie in the span of as many components as there are images."""
    model, variables, source = system
    images = source.images(source.splits["train"][:40])
    expected = logits_of(model, variables, images)
    for components, close in ((39, True), (2, False)):
        reduced, fitted = osia.reduce(
            model, variables, source, components=components, max_images=40
        )
        error = np.abs(logits_of(reduced, fitted, images) - expected).max() / expected.std()
        assert (error < 1e-3) == close, (components, error)


def test_a_reduced_network_has_the_structure_of_its_init(system):
    model, variables, source = system
    reduced, fitted = osia.reduce(model, variables, source, components=6)
    like = jax.eval_shape(reduced.init, jax.random.key(0))
    assert jax.tree.structure(fitted) == jax.tree.structure(like)
    for a, b in zip(jax.tree.leaves(fitted), jax.tree.leaves(like), strict=True):
        assert a.shape == b.shape
    x = data.normalize(source.images(np.arange(2)))
    for segment in ("pre", "main"):
        y = x
        for _, layer in getattr(reduced, segment).layers:
            y = layer(fitted[segment], y)
        np.testing.assert_array_equal(y, getattr(reduced, segment)(fitted[segment], x))
        x = y


def test_the_edge_pays_for_the_projection_and_sends_little():
    """conv5_1 of VGG-16 at full size: 512 x 14 x 14 activations become 8 numbers."""
    names = vgg16().spec.unit_names
    model = vgg16(cut=names.index("conv5_1") + 1, num_attributes=1, num_classes=1000)
    whole = costs.model_cost(model, group_size=1)
    cost = costs.model_cost(osia.with_projection(model, 8), group_size=1)
    assert cost.pre.macs - whole.pre.macs == 8 * 512 * 14 * 14
    assert cost.pre.parameters == whole.pre.parameters
    assert (whole.up_bytes, cost.up_bytes) == (4 * 512 * 14 * 14, 4 * 8)


# Siamese fine-tuning.


def test_contrastive_loss_is_the_formula():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 20, 3, 4)).astype(np.float32)
    same = rng.integers(0, 2, 20).astype(bool)
    distances = np.sqrt(((first - second) ** 2).mean((1, 2)))
    expected = np.where(same, distances**2, np.maximum(0, 1.5 - distances) ** 2).mean() / 2
    found = osia.contrastive(jnp.asarray(first), jnp.asarray(second), same, margin=1.5)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(lambda x: osia.contrastive(x, x * 1.0, same, margin=1.5))(first)
    assert bool(jnp.isfinite(gradient).all()), "also for equal activations"


def scatter(model, variables, source):
    """Variance within the answers over the whole, at the cut."""
    rows = source.splits["test"]
    z = model.pre(variables["pre"], data.normalize(source.images(rows)))
    z = np.asarray(z).reshape(len(rows), -1)
    answer = source.attributes[rows, 0]
    within = np.mean([z[answer == a].var(0).sum() for a in (0, 1)])
    return within / z.var(0).sum()


@pytest.mark.parametrize("name", ["margin", "contrastive_weight", "learning_rate"])
def test_infinite_options_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} is inf"):
        osia.SiameseConfig(attribute="Bright", **{name: float("inf")})


@pytest.mark.slow
def test_finetuning_draws_equal_answers_together(system):
    """More than training without the contrastive loss does, with all else equal."""
    model, variables, source = system
    found = {}
    for weight in (0.0, 5.0):
        config = osia.SiameseConfig(
            attribute="Bright",
            contrastive_weight=weight,
            steps=25,
            batch_size=32,
            learning_rate=3e-3,
        )
        found[weight] = scatter(model, osia.finetune(model, variables, source, config), source)
    assert found[5.0] < 0.7 * found[0.0]
    with pytest.raises(UsageError, match=r"batch_size 3 .*Use an even batch_size"):
        osia.SiameseConfig(attribute="Bright", batch_size=3)
    with pytest.raises(UsageError, match="'Brihgt'"):
        osia.finetune(model, variables, source, osia.SiameseConfig(attribute="Brihgt"))


# Train, infer, attack.


@pytest.mark.slow
def test_a_reduced_network_trains_infers_and_is_attacked(system):
    model, variables, source = system
    reduced, fitted = osia.reduce(model, variables, source, components=8)
    defense = defenses.noise(variance=0.5)
    train = training.TrainConfig(batch_size=32)
    state = training.start_from(training.init_state(reduced, train, 2), fitted)
    step = training.make_train_step(reduced, defense, train, 2)
    for _ in range(2):
        state, info = step(state, source.images(np.arange(32)), source.attributes[:32])
    assert np.isfinite(float(info.loss))
    target = attacks.Target(
        model=reduced, defense=defense, variables=state.variables, source=source
    )
    rows = attacks.recorded_rows(target, 32)
    recording = attacks.record(target, rows, rng_key=jax.random.key(1))
    assert recording.view.mixtures.shape == (32, 1, 1, 8)
    config = attacks.AttackConfig(steps=2, batch_size=16)
    for name in ("restoration", "attributes", "pix2pix"):
        attack = suite.ATTACKS[name]
        assert attack.unsuitable(target) is None
        for figure in attack.run(target, recording, jax.random.key(2), config).figures:
            assert np.isfinite([figure.value, figure.floor, figure.owner]).all()
            assert figure.key_advantage == 0
