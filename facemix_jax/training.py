"""Encryption-aware training (paper, section 3.4): one pure step; plain training is the same code.

Every step draws fresh secrets by ``fold_in(rng_key, step)``, runs pre, protect, main, recover and
post, and minimises the mean two-way cross-entropy over all attributes, with a regulariser where
wished: isometry, or ``facemix_jax.gaussian_codes``. The learning rate and everything random depend
on the step alone, so a resumed run repeats an uninterrupted one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import _validate, gaussian_codes
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.data import normalize
from facemix_jax.defenses import Defense
from facemix_jax.models import SplitModel, isometry_penalty, with_prior

_APART = 2**31
"""``fold_in(key, i)`` is ``split(key, n)[i]``: no split is so wide that it gives this one."""

STATISTICS = ("mixed", "clean", "separate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The paper is silent on most of this; these are our defaults.

    Attributes:
        num_epochs: passes over the training images; an incomplete last batch is dropped.
        batch_size: images in a step, a multiple of the group size.
        learning_rate: peak of Adam's; rises linearly, then follows a cosine to zero.
        warmup_fraction: share of all steps during which it rises; the last step is always left
            to the cosine.
        adam_b2: Adam's second-moment decay, below 1; 0.99 follows short runs better than 0.999.
        nesterov: Adam with Nesterov momentum (NAdam), which gains most in short runs.
        weight_decay: 1e-4 in the paper; that it is decoupled (AdamW) is our reading.
        isometry: weight of the regulariser that draws main's convolutions towards isometries
            (``models.isometry_penalty``); 0 for none, as in the paper.
        flip: mirror images left to right at random.
        statistics: whose BatchNorm statistics main keeps for inference: those of the ``mixed``
            activations it is trained on, of ``clean`` ones, or ``separate`` sets of both, each
            used for its own kind.
        negentropy_weight: of the sliced negentropy of the activations' gradients, in nats; 0 for
            none, as in the paper. See ``facemix_jax.gaussian_codes``.
        discriminator_weight: of the advantage, in nats, of a discriminator that is trained along to
            tell single activations from mixed ones; 0 for none, as in the paper.
        seed: of initialisation, order, flips and mixing matrices.
        log_every: steps between records.
        checkpoint_every: steps between checkpoints; the last step is always saved.
    """

    num_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 5e-4
    warmup_fraction: float = 0.05
    adam_b2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 1e-4
    isometry: float = 0.0
    flip: bool = True
    statistics: str = "mixed"
    negentropy_weight: float = 0.0
    discriminator_weight: float = 0.0
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        """Checks ranges."""
        _validate.positive(
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
        )
        _validate.in_range(0, 1, warmup_fraction=self.warmup_fraction, adam_b2=self.adam_b2)
        if np.float32(self.adam_b2) == 1:  # updates would be divided by a mean that stays 0
            raise _validate.UsageError(
                f"adam_b2 is {self.adam_b2}, but must be below 1 in float32. Use 0.99 or 0.999."
            )
        _validate.finite(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            isometry=self.isometry,
            negentropy_weight=self.negentropy_weight,
            discriminator_weight=self.discriminator_weight,
        )
        _validate.in_range(
            0,
            float("inf"),
            weight_decay=self.weight_decay,
            isometry=self.isometry,
            negentropy_weight=self.negentropy_weight,
            discriminator_weight=self.discriminator_weight,
        )
        _validate.in_range(0, 2**32 - 1, seed=self.seed)
        _validate.one_of(STATISTICS, statistics=self.statistics)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on.

    Attributes:
        step: int32 scalar, steps done.
        variables: ``{"pre", "main", "post"}``.
        opt_state: the optimiser's; with a discriminator, ``{"network", "discriminator",
            "for_discriminator"}``: the discriminator itself and the states of both optimisers.
        rng_key: never consumed; step keys are ``fold_in(rng_key, step)``.
    """

    step: Array
    variables: dict[str, Any]
    opt_state: Any
    rng_key: RngKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInfo:
    """What a step reports: float32 scalars over the batch; the loss with all its terms."""

    loss: Array
    accuracy: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scalars:
    """What a step takes as numbers, so that runs that differ in them share one program.

    Attributes:
        learning_rate: float32 scalar, the peak.
        weight_decay: float32 scalar.
    """

    learning_rate: Array | np.float32
    weight_decay: Array | np.float32

    @classmethod
    def of(cls, config: TrainConfig) -> "Scalars":
        """A configuration's own."""
        return cls(np.float32(config.learning_rate), np.float32(config.weight_decay))


TrainStep = Callable[
    [TrainState, Array | HostArray, Array | HostArray], tuple[TrainState, StepInfo]
]
PureStep = Callable[..., tuple[TrainState, StepInfo]]
"""``(state, images, attributes, scalars) -> (state, info)``."""


def learning_rate(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to zero at ``num_steps``."""
    return _schedule(config, num_steps, Scalars.of(config).learning_rate)


def _schedule(config: TrainConfig, num_steps: int, peak: Array | np.float32) -> optax.Schedule:
    shape = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=1.0,
        warmup_steps=min(round(config.warmup_fraction * num_steps), num_steps - 1),
        decay_steps=num_steps,
    )
    return lambda step: peak * shape(step)


def _optimizer(
    config: TrainConfig, num_steps: int, scalars: Scalars
) -> optax.GradientTransformation:
    return optax.adamw(
        _schedule(config, num_steps, scalars.learning_rate),
        b2=config.adam_b2,
        weight_decay=scalars.weight_decay,
        nesterov=config.nesterov,
    )


def params_of(variables: dict[str, Any]) -> dict[str, Any]:
    """What is trained of a network's variables, by segment."""
    return {name: segment.get("params", {}) for name, segment in variables.items()}


def with_params(variables: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The same variables with other parameters."""
    return {
        name: {**segment, "params": params[name]} if "params" in segment else segment
        for name, segment in variables.items()
    }


def init_state(
    model: SplitModel, config: TrainConfig, num_steps: int, *, rates: HostArray | None = None
) -> TrainState:
    """The state before the first step.

    Args:
        model: the split network.
        config: of training.
        num_steps: of the whole run, which the learning rate follows.
        rates: float ``[K]``, share of training images that have each attribute; where given, the
            head's bias starts there.
    """
    rng_key = jax.random.key(config.seed)
    init_key, step_key = jax.random.split(rng_key)
    variables = model.init(init_key)
    if rates is not None:
        variables = with_prior(variables, rates)
    if config.statistics == "separate" and "batch_stats" in variables["main"]:
        main = variables["main"]
        clean = jax.tree.map(jnp.copy, main["batch_stats"])  # a donated buffer has one owner
        variables = {**variables, "main": {**main, "clean_stats": clean}}
    opt_state = _optimizer(config, num_steps, Scalars.of(config)).init(params_of(variables))
    if config.discriminator_weight:
        judge_key = jax.random.fold_in(init_key, _APART)
        channels = model.spec.activation_shape[-1]
        discriminator = gaussian_codes.init_discriminator(judge_key, channels)
        opt_state = {
            "network": opt_state,
            "discriminator": discriminator,
            "for_discriminator": gaussian_codes.OPTIMIZER.init(discriminator),
        }
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, step_key)


@jax.jit
def all_finite(variables: Variables) -> Array:
    """Whether a network's numbers are all finite: bool scalar.

    The loss says it of the parameters before a step only, so that it is asked for before saving.

    Args:
        variables: of all segments.
    """
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)]
    return jnp.stack(found).all()


def start_from(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """The state before the first step with other variables of the same structure.

    The optimiser starts at zero whatever the variables.
    """
    return dataclasses.replace(state, variables=variables)


def cross_entropy(logits: Array, attributes: Array) -> Array:
    """Mean cross-entropy over examples and attributes.

    Args:
        logits: float32 ``[B, K, classes]``.
        attributes: integer ``[B, K]``.

    Returns:
        float32 scalar, in nats.
    """
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, attributes.astype(jnp.int32))
    )


def forward(
    model: SplitModel,
    defense: Defense,
    variables: dict[str, Any],
    rng_key: RngKey,
    images: Array,
    *,
    statistics: str = "mixed",
) -> tuple[Array, dict[str, Any], Array]:
    """The encryption-aware forward pass in training: equation 2 with the batch's statistics.

    Returns:
        Logits float32 ``[B, K, classes]``, the variables with updated running statistics, and
        the activations before protection, ``[T * B, h, w, C]``.
    """
    clean, pre = model.pre.train(variables["pre"], images)
    secret = defense.init(rng_key, clean.shape[0], True)
    main_in = {k: v for k, v in variables["main"].items() if k != "clean_stats"}
    responses, main = model.main.train(main_in, defense.protect(secret, clean))
    logits = model.post(variables["post"], defense.recover(secret, responses))
    if statistics != "mixed" and "batch_stats" in main:
        kept = variables["main"].get("clean_stats", variables["main"]["batch_stats"])
        _, seen_clean = model.main.train(
            {**main_in, "batch_stats": kept}, jax.lax.stop_gradient(clean)
        )
        name = "clean_stats" if statistics == "separate" else "batch_stats"
        main = {**main, name: seen_clean["batch_stats"]}
    return logits, {**variables, "pre": pre, "main": main}, clean


def make_step(model: SplitModel, defense: Defense, config: TrainConfig, num_steps: int) -> PureStep:
    """Builds the pure step ``(state, images, attributes, scalars) -> (state, info)``.

    Of ``config``, ``seed``, ``learning_rate`` and ``weight_decay`` play no part: they come with
    the state and the scalars, so that runs which differ in nothing else get the same function,
    which is compiled once. See ``make_train_step`` for shapes.
    """
    shared = dataclasses.replace(
        config, seed=0, learning_rate=1.0, weight_decay=0.0, log_every=1, checkpoint_every=1
    )
    return _shared_step(model, defense, shared, num_steps)


def _keys(step_key: RngKey) -> tuple[RngKey, RngKey, RngKey, RngKey]:
    """Of flips, the defence, the penalty and the discriminator's own step."""
    flip_key, mix_rng_key = jax.random.split(step_key)
    penalty_key, improve_key = jax.random.split(jax.random.fold_in(step_key, _APART))
    return flip_key, mix_rng_key, penalty_key, improve_key


@functools.lru_cache(maxsize=16)
def _shared_step(
    model: SplitModel, defense: Defense, config: TrainConfig, num_steps: int
) -> PureStep:
    with_judge = bool(config.discriminator_weight)
    penalty = functools.partial(
        gaussian_codes.penalty,
        negentropy_weight=config.negentropy_weight,
        discriminator_weight=config.discriminator_weight,
        group_size=defense.group_size,
        tiles=model.spec.tiles,
    )

    def step(
        state: TrainState, images: Array, attributes: Array, scalars: Scalars
    ) -> tuple[TrainState, StepInfo]:
        step_key = jax.random.fold_in(state.rng_key, state.step)
        flip_key, mix_rng_key, penalty_key, improve_key = _keys(step_key)
        x = normalize(images)
        if config.flip:
            mirrored = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        network, discriminator = state.opt_state, None
        if with_judge:
            network, discriminator = network["network"], network["discriminator"]

        def loss_of(params: dict[str, Any]) -> tuple[Array, tuple[Array, dict[str, Any], Array]]:
            logits, variables, codes = forward(
                model,
                defense,
                with_params(state.variables, params),
                mix_rng_key,
                x,
                statistics=config.statistics,
            )
            loss = cross_entropy(logits, attributes)
            if config.isometry:
                loss = loss + config.isometry * isometry_penalty(params["main"])
            if config.negentropy_weight or with_judge:
                loss = loss + penalty(codes, discriminator, penalty_key)
            return loss, (logits, variables, codes)

        params = params_of(state.variables)
        (loss, found), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        logits, variables, codes = found
        optimizer = _optimizer(config, num_steps, scalars)
        updates, opt_state = optimizer.update(gradient, network, params)
        params = optax.apply_updates(params, updates)
        if discriminator is not None:
            discriminator, for_discriminator = gaussian_codes.improve(
                discriminator,
                state.opt_state["for_discriminator"],
                codes,
                improve_key,
                group_size=defense.group_size,
            )
            opt_state = {
                "network": opt_state,
                "discriminator": discriminator,
                "for_discriminator": for_discriminator,
            }
        correct = jnp.argmax(logits, axis=-1) == attributes.astype(jnp.int32)
        return (
            TrainState(state.step + 1, with_params(variables, params), opt_state, state.rng_key),
            StepInfo(loss, jnp.mean(correct, dtype=jnp.float32)),
        )

    return step


def make_train_step(
    model: SplitModel, defense: Defense, config: TrainConfig, num_steps: int
) -> TrainStep:
    """Builds the jitted step ``(state, images, attributes) -> (state, info)``.

    ``images`` are uint8 ``[B, H, W, 3]``, ``attributes`` integer ``[B, K]``. The state is donated:
    the caller goes on with what comes back.
    """
    step = make_step(model, defense, config, num_steps)
    return jax.jit(functools.partial(step, scalars=Scalars.of(config)), donate_argnums=0)
