"""The hybrid architecture of Osia et al. (2017): a deep cut, few numbers sent, noise on them.

The edge runs a network up to a deep layer (conv5_1 of VGG-16 in Table 1), projects its activation
on principal components and adds noise; the cloud reconstructs and goes on. Before that, Siamese
fine-tuning draws activations of faces with the same answer together, whoever they show, so that
few components are enough and tell people apart less::

    variables = osia.finetune(model, variables, source, osia.SiameseConfig(attribute="Male"))
    reduced, variables = osia.reduce(model, variables, source, components=8)
    defense = facemix_jax.defenses.noise(variance=0.5)

``reduced`` is a split network like any other: its pre ends with the projection, its main begins
with the reconstruction. Answers are not protected, as main ends on the cloud with no key.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import _validate, data, training
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.data import Source
from facemix_jax.models import Segment, SplitModel

_CHUNK = 64
_HIGHEST = jax.lax.Precision.HIGHEST


class Components(NamedTuple):
    """Principal components of flat activations.

    Attributes:
        mean: float32 ``[P]``.
        axes: float32 ``[k, P]``, orthonormal, largest variance first.
        variances: float32 ``[k]``, along the axes.
        share: of the whole variance, in [0, 1].
    """

    mean: HostArray
    axes: HostArray
    variances: HostArray
    share: float


def principal_components(x: HostArray, components: int) -> Components:
    """Principal component analysis of float ``[n, P]`` by singular value decomposition.

    Raises:
        UsageError: fewer than 2 examples; as many components as examples, of which deviations from
            the mean span one dimension less, or more than numbers.
        DataError: NaN or infinities, or examples that are all the same.
    """
    _check_number(components, len(x))
    _validate.in_range(1, x.shape[1], components=components)
    if not np.isfinite(x).all():
        raise _validate.DataError(
            "Activations hold NaN or infinities, which have no components. Use variables of a "
            "training that did not diverge."
        )
    # The same image in another chunk may differ in the last bits.
    if np.ptp(x, axis=0).max() <= 1e-6 * np.abs(x).max():
        raise _validate.DataError(
            f"The activations of all {len(x)} images are the same: they have no variance, and so "
            f"no components. Use variables of a network that learnt, and images that differ."
        )
    mean = x.mean(0)
    _, values, axes = np.linalg.svd(x - mean, full_matrices=False)
    variances = values**2 / (len(x) - 1)
    share = float(variances[:components].sum() / max(variances.sum(), 1e-30))
    return Components(mean, axes[:components], variances[:components], share)


def reduce(
    model: SplitModel,
    variables: Variables,
    source: Source,
    *,
    components: int,
    split: str = "train",
    max_images: int = 1024,
) -> tuple[SplitModel, dict[str, Any]]:
    """A network that sends principal components of its activation instead of the activation.

    What is sent, ``[B, 1, 1, k]``, has mean 0 and a mean variance of 1, the unit of noise on it.

    Args:
        model: cut where the edge ends.
        variables: ``{"pre", "main", "post"}``, trained.
        source: images whose activations the components are fitted to.
        components: ``k``.
        split: of the source.
        max_images: the first ones of the split.

    Returns:
        The network and its variables; ``variables["pre"]["pca"]`` and that of main hold the fit.

    Raises:
        UsageError: more components than images less one or activation elements, or a network with
            tiles.
        DataError: activations are NaN or infinite, or the same for all images.
    """
    _validate.one_of(source.splits, split=split)
    _validate.positive(max_images=max_images)
    rows = source.splits[split][:max_images]
    _check_number(components, len(rows))
    reduced = with_projection(model, components)
    pre = jax.jit(model.pre.apply)
    parts = np.array_split(rows, -(-len(rows) // _CHUNK))
    activations = [
        np.asarray(pre(variables["pre"], data.normalize(source.images(part))), np.float32)
        for part in parts
    ]
    flat = np.concatenate(activations).reshape(len(rows), -1)
    found = principal_components(flat, components)
    scale = max(float(np.sqrt(found.variances.mean())), 1e-12)
    fitted = {
        **variables,
        "pre": {
            **variables["pre"],
            "pca": {"mean": jnp.asarray(found.mean), "encode": jnp.asarray(found.axes.T / scale)},
        },
        "main": {
            **variables["main"],
            "pca": {"mean": jnp.asarray(found.mean), "decode": jnp.asarray(found.axes * scale)},
        },
    }
    return reduced, fitted


def with_projection(model: SplitModel, components: int) -> SplitModel:
    """The network of ``reduce``; its ``init`` holds components that are fitted to nothing."""
    _check_whole(model)
    shape = model.spec.activation_shape
    size = math.prod(shape)
    _validate.in_range(1, size, components=components)

    def encode(variables: Variables, z: Array) -> Array:
        pca = variables["pca"]
        centred = z.astype(jnp.float32).reshape(-1, size) - pca["mean"][None]
        return jnp.matmul(centred, pca["encode"], precision=_HIGHEST)[:, None, None]

    def decode(variables: Variables, codes: Array) -> Array:
        pca = variables["pca"]
        flat = jnp.matmul(codes.reshape(-1, components), pca["decode"], precision=_HIGHEST)
        return (flat + pca["mean"][None]).reshape(-1, *shape)

    def pre_train(variables: Variables, x: Array) -> tuple[Array, dict[str, Any]]:
        z, updated = model.pre.train(variables, x)
        return encode(variables, z), updated

    def main_train(variables: Variables, codes: Array) -> tuple[Array, dict[str, Any]]:
        return model.main.train(variables, decode(variables, codes))

    def pre_init(rng_key: RngKey, x: Any) -> dict[str, Any]:
        pca = {"mean": jnp.zeros(size), "encode": jnp.eye(size, components)}
        return {**model.pre.init(rng_key, x), "pca": pca}

    def main_init(rng_key: RngKey, x: Any) -> dict[str, Any]:
        pca = {"mean": jnp.zeros(size), "decode": jnp.eye(components, size)}
        z = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return {**model.main.init(rng_key, z), "pca": pca}

    pre = Segment(
        pre_init,
        lambda variables, x: encode(variables, model.pre(variables, x)),
        pre_train,
        (*model.pre.layers, ("projection", encode)),
    )
    main = Segment(
        main_init,
        lambda variables, codes: model.main(variables, decode(variables, codes)),
        main_train,
        (("reconstruction", decode), *model.main.layers),
    )
    image = jax.ShapeDtypeStruct((1, *model.spec.image_size, 3), jnp.float32)
    code = jax.ShapeDtypeStruct((1, 1, 1, components), jnp.float32)
    response = jax.ShapeDtypeStruct((1, *model.spec.response_shape), jnp.float32)

    def init(rng_key: RngKey) -> dict[str, Any]:
        return {
            "pre": pre.init(rng_key, image),
            "main": main.init(rng_key, code),
            "post": model.post.init(rng_key, response),
        }

    spec = dataclasses.replace(
        model.spec, name=f"{model.spec.name} with PCA", activation_shape=(1, 1, components)
    )
    return SplitModel(init, pre, main, model.post, spec)


def _check_number(components: int, examples: int) -> None:
    if examples < 2:
        raise _validate.UsageError(
            f"Components are of what differs between examples, but there is only {examples}. Give "
            f"more than {max(components, 1)}."
        )
    _validate.in_range(1, examples - 1, components=components)


def _check_whole(model: SplitModel) -> None:
    if model.spec.tiles > 1:
        raise _validate.UsageError(
            f"The network cuts its maps into {model.spec.tiles} tiles, but components and pairs "
            f"are of whole maps. Build the network without a tile size."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiameseConfig:
    """How activations at the cut are drawn together.

    Attributes:
        attribute: whose answer decides which faces belong together.
        contrastive_weight: of the contrastive loss beside the attributes' own.
        margin: distance that faces of different answers are pushed to, in root mean squares of
            the difference.
        steps: of training.
        batch_size: images in a step, half as many pairs.
        learning_rate: Adam's peak; rises over a tenth of the steps, then falls to zero.
        seed: of order and pairs.
    """

    attribute: str
    contrastive_weight: float = 1.0
    margin: float = 1.0
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        _validate.positive(
            margin=self.margin,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )
        _validate.finite(
            margin=self.margin,
            contrastive_weight=self.contrastive_weight,
            learning_rate=self.learning_rate,
        )
        _validate.in_range(0, float("inf"), contrastive_weight=self.contrastive_weight)
        _validate.divides(
            2, "Use an even batch_size.", divisor_name="pair size", batch_size=self.batch_size
        )


def contrastive(first: Array, second: Array, same: Array, *, margin: float) -> Array:
    """Mean contrastive loss of pairs (Hadsell, Chopra and LeCun, 2006, equation 4).

    ``d^2 / 2`` where the answers are the same, ``max(0, margin - d)^2 / 2`` where they differ,
    with ``d`` the root mean square of the difference.

    Args:
        first: ``[n, ...]``.
        second: ``[n, ...]``.
        same: bool ``[n]``.
        margin: positive.
    """
    squared = jnp.square(first - second).reshape(len(first), -1).mean(1)
    distance = jnp.sqrt(squared + 1e-12)
    apart = jnp.square(jnp.maximum(0.0, margin - distance))
    return jnp.mean(jnp.where(same, squared, apart)) / 2


def finetune(
    model: SplitModel, variables: Variables, source: Source, config: SiameseConfig
) -> dict[str, Any]:
    """Trains on with the contrastive loss at the cut beside the attributes' cross-entropy.

    Args:
        model: cut where the edge ends.
        variables: ``{"pre", "main", "post"}`` to start from.
        source: pairs are drawn from its training images.
        config: how.

    Returns:
        New variables.

    Raises:
        UsageError: an unknown attribute, fewer images than a batch, or a network with tiles.
        DataError: the loss is not finite.
    """
    _check_whole(model)
    _validate.one_of(source.attribute_names, attribute=config.attribute)
    index = source.attribute_names.index(config.attribute)
    optimizer = optax.adam(
        optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, config.steps // 10, config.steps
        )
    )
    params = {name: segment.get("params", {}) for name, segment in variables.items()}
    statistics = {
        name: {kind: v for kind, v in segment.items() if kind != "params"}
        for name, segment in variables.items()
    }

    @jax.jit
    def step(
        params: Any, statistics: Any, opt_state: Any, images: Array, attributes: Array
    ) -> tuple[Any, Any, Any, Array]:
        def loss_of(params: Any) -> tuple[Array, Any]:
            joined = {name: {**statistics[name], "params": params[name]} for name in params}
            z, pre = model.pre.train(joined["pre"], data.normalize(images))
            features, main = model.main.train(joined["main"], z)
            logits = model.post(joined["post"], features)
            half = len(z) // 2
            answer = attributes[:, index]
            pull = contrastive(
                z[:half], z[half:], answer[:half] == answer[half:], margin=config.margin
            )
            loss = training.cross_entropy(logits, attributes) + config.contrastive_weight * pull
            after = {**joined, "pre": pre, "main": main}
            return loss, {
                name: {kind: v for kind, v in segment.items() if kind != "params"}
                for name, segment in after.items()
            }

        (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), statistics, opt_state, loss

    opt_state = optimizer.init(params)
    batches = data.train_batches(source, batch_size=config.batch_size, seed=config.seed)
    for _ in range(config.steps):
        batch = next(batches)
        params, statistics, opt_state, loss = step(
            params, statistics, opt_state, batch.images, batch.attributes
        )
    if not np.isfinite(float(loss)):
        raise _validate.DataError(
            f"Siamese fine-tuning diverged: its loss is {float(loss)}. Lower learning_rate or "
            f"contrastive_weight."
        )
    return {
        name: {**statistics[name], "params": params[name]} if "params" in segment else dict(segment)
        for name, segment in variables.items()
    }
