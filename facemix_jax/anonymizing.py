"""Training of the face anonymizer (Ren, Lee and Ryoo, 2018), a baseline of the paper's Table 2.

A generator on the edge changes faces so that a face identifier errs, while the cloud's network,
trained along with it, still finds the attributes, and the picture stays near the original. The
identifier, which learns from original and changed faces, has a head with an additive angular
margin (Deng et al., 2019, after the multiplicative one that Ren et al. take from SphereFace). Every
step first improves the identifier, then generator and network::

    identifier:             CE_id(x) + CE_id(g(x))
    generator and network:  CE_attributes(g(x)) + closeness |g(x) - x| - adversary CE_id(g(x))

What comes out is an ordinary split network whose pre is the generator, with no defence: attackers
other than this identifier may do better, and ``facemix attack`` trains some.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import _validate, claims, data, fitting, hosts, runs, sharding, training
from facemix_jax._files import write_atomically
from facemix_jax._types import Array, HostArray, ImageSize, RngKey
from facemix_jax.checkpoint import Checkpoints
from facemix_jax.data import Source
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig, SplitModel, resnet18, with_prior
from facemix_jax.models.anonymizer import angular_logits, to_unit
from facemix_jax.records import Records
from facemix_jax.runs import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnonymizerConfig:
    """What the anonymizer is trained for; weights relative to the attributes' loss.

    The publication's weights belong to another task (action detection); these are our choice.

    Attributes:
        adversary_weight: of the identifier's error.
        closeness_weight: of the mean absolute difference of images in [-1, 1].
        margin: of the identifier's head, in radians.
        scale: of its logits, which are cosines otherwise.
        identifier_width: channels of the first stage of the identifier, a ResNet-18.
    """

    adversary_weight: float = 0.3
    closeness_weight: float = 1.0
    margin: float = 0.3
    scale: float = 16.0
    identifier_width: int = 32

    def __post_init__(self) -> None:
        """Checks ranges."""
        _validate.positive(scale=self.scale, identifier_width=self.identifier_width)
        weights = {
            "adversary_weight": self.adversary_weight,
            "closeness_weight": self.closeness_weight,
        }
        _validate.finite(scale=self.scale, **weights)
        _validate.in_range(0, float("inf"), **weights)
        _validate.in_range(0, 1.5, margin=self.margin)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnonymizerState:
    """All that a run needs to go on.

    Attributes:
        step: int32 scalar, steps done.
        variables: ``{"pre", "main", "post"}``; pre is the generator.
        identifier: ``{"params": {"encoder", "people"}, "batch_stats"}``.
        opt_state: of both sides' optimisers.
        rng_key: never consumed; step keys are ``fold_in(rng_key, step)``.
    """

    step: Array
    variables: dict[str, Any]
    identifier: dict[str, Any]
    opt_state: Any
    rng_key: RngKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnonymizerInfo:
    """What a step reports: float32 scalars over the batch.

    Attributes:
        loss: of the attributes.
        accuracy: of the attributes.
        identified: share of changed faces that the identifier names right, margin aside.
        distance: mean absolute difference of changed and original images in [-1, 1].
    """

    loss: Array
    accuracy: Array
    identified: Array
    distance: Array


def identifier_model(model: SplitModel, config: AnonymizerConfig) -> SplitModel:
    """The identifier's encoder is main of a ResNet-18 that reads whole images."""
    return resnet18(cut=0, image_size=model.spec.image_size, width=config.identifier_width)


def init_state(
    model: SplitModel,
    config: AnonymizerConfig,
    train: training.TrainConfig,
    num_steps: int,
    *,
    num_people: int,
    rates: HostArray | None = None,
) -> AnonymizerState:
    """The state before the first step.

    Args:
        model: an anonymizer, cut after its generator.
        config: what it is trained for.
        train: how; the paper's settings of training hold for both sides.
        num_steps: of the whole run.
        num_people: ``P``.
        rates: float ``[K]``, the attributes' frequencies, where the head's bias starts.
    """
    init_key, encoder_key, people_key, step_key = jax.random.split(jax.random.key(train.seed), 4)
    variables = model.init(init_key)
    if rates is not None:
        variables = with_prior(variables, rates)
    encoder = identifier_model(model, config)
    made = encoder.init(encoder_key)["main"]
    people = jax.random.normal(people_key, (num_people, encoder.spec.response_shape[0]))
    identifier = {
        "params": {"encoder": made["params"], "people": people},
        "batch_stats": made["batch_stats"],
    }
    optimizer = _optimizer(train, num_steps)
    opt_state = {
        "identifier": optimizer.init(identifier["params"]),
        "network": optimizer.init(training.params_of(variables)),
    }
    return AnonymizerState(jnp.zeros((), jnp.int32), variables, identifier, opt_state, step_key)


Step = Callable[[AnonymizerState, Any, Any, Any], tuple[AnonymizerState, AnonymizerInfo]]


def make_step(
    model: SplitModel, config: AnonymizerConfig, train: training.TrainConfig, num_steps: int
) -> Step:
    """Builds the jitted step ``(state, images, attributes, people) -> (state, info)``.

    ``images`` are uint8 ``[B, H, W, 3]``, ``attributes`` integer ``[B, K]``, ``people`` int
    ``[B]`` from 0 to ``P - 1``. The state is donated.
    """
    encoder, optimizer = identifier_model(model, config).main, _optimizer(train, num_steps)

    def identify(
        identifier: Any, x: Array, changed: Array, people: Array | None
    ) -> tuple[Array, Any]:
        """Logits of original and of changed faces, which share a batch and its statistics."""
        variables = {**identifier, "params": identifier["params"]["encoder"]}
        features, updated = encoder.train(variables, jnp.concatenate([x, changed]))
        logits = angular_logits(
            features,
            identifier["params"]["people"],
            None if people is None else jnp.tile(people, 2),
            margin=config.margin,
            scale=config.scale,
        )
        return logits, updated["batch_stats"]

    def step(
        state: AnonymizerState, images: Array, attributes: Array, people: Array
    ) -> tuple[AnonymizerState, AnonymizerInfo]:
        x = data.normalize(images)
        if train.flip:
            flip_key = jax.random.fold_in(state.rng_key, state.step)
            mirrored = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)

        def generate(params: Any) -> tuple[Array, Any]:
            return model.pre.train({**state.variables["pre"], "params": params}, x)

        params = training.params_of(state.variables)
        # The generator's layers take most of a step: computed once, for both sides.
        changed, generator_gradient, pre = jax.vjp(generate, params["pre"], has_aux=True)

        def identifier_loss(params: Any) -> tuple[Array, Any]:
            logits, statistics = identify(
                {**state.identifier, "params": params}, x, changed, people
            )
            return 2 * _cross_entropy(logits, jnp.tile(people, 2)), statistics

        weights = state.identifier["params"]
        gradient, statistics = jax.grad(identifier_loss, has_aux=True)(weights)
        updates, for_identifier = optimizer.update(gradient, state.opt_state["identifier"], weights)
        identifier = {"params": optax.apply_updates(weights, updates), "batch_stats": statistics}

        def network_loss(
            params: Any, changed: Array
        ) -> tuple[Array, tuple[AnonymizerInfo, dict[str, Any]]]:
            variables = training.with_params(state.variables, params)
            features, main = model.main.train(variables["main"], changed)
            logits = model.post(variables["post"], features)
            attribute_loss = training.cross_entropy(logits, attributes)
            named = identify(identifier, x, changed, None)[0][len(x) :]
            distance = jnp.abs(to_unit(changed) - to_unit(x)).mean()
            correct = jnp.argmax(logits, axis=-1) == attributes.astype(jnp.int32)
            info = AnonymizerInfo(
                attribute_loss,
                jnp.mean(correct, dtype=jnp.float32),
                jnp.mean(jnp.argmax(named, axis=-1) == people, dtype=jnp.float32),
                distance,
            )
            loss = attribute_loss + config.closeness_weight * distance
            loss = loss - config.adversary_weight * _cross_entropy(named, people)
            return loss, (info, {**variables, "pre": pre, "main": main})

        (gradient, of_changed), (info, variables) = jax.grad(
            network_loss, argnums=(0, 1), has_aux=True
        )(params, changed)
        gradient["pre"] = generator_gradient(of_changed)[0]
        updates, for_network = optimizer.update(gradient, state.opt_state["network"], params)
        variables = training.with_params(variables, optax.apply_updates(params, updates))
        opt_state = {"identifier": for_identifier, "network": for_network}
        after = AnonymizerState(state.step + 1, variables, identifier, opt_state, state.rng_key)
        return after, info

    return jax.jit(step, donate_argnums=0)


def fit(
    run: RunConfig,
    config: AnonymizerConfig,
    workdir: Path,
    *,
    source: Source | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> AnonymizerState:
    """Trains, or goes on training, in a work directory that other commands then read.

    Args:
        run: data, network (``anonymizer``, cut 1), defence (``none``) and training.
        config: what the anonymizer is trained for; kept in ``anonymizer.json``.
        workdir: created if missing. The same arguments go on from its newest checkpoint.
        source: the images, if they are loaded already.
        say: told about every record.

    Returns:
        The state after the last step.

    Raises:
        UsageError: the network, defence, images or work directory are others, images show fewer
            than two people, or an option is given that this training does not have.
        FacemixError: another process trains in the work directory.
        DivergedError: the loss or the network is not finite.
        StoppedError: SIGINT or SIGTERM; the state was saved.
    """
    check(run, workdir, run.data.image_size if source is None else source.image_size)
    source = data.load_source(run.data) if source is None else source
    model = runs.build_model(run, source)
    rows = source.splits["train"]
    people = np.unique(source.identities[rows])
    steps_per_epoch = len(rows) // run.train.batch_size
    if len(people) < 2 or not steps_per_epoch:
        raise _validate.UsageError(
            f"There are {len(rows)} training images of {len(people)} people, but a batch of "
            f"{run.train.batch_size} images and two people are needed. Use more images."
        )
    num_steps = steps_per_epoch * run.train.num_epochs
    with (
        claims.alone(
            workdir, run, images=runs.images_of(source, source.image_size), anonymizer=True
        ),
        Checkpoints(workdir / "checkpoints", runs.identity(run, model)) as checkpoints,
    ):
        _claim_options(workdir / claims.ANONYMIZER, config, checkpoints.latest())
        state = init_state(
            model,
            config,
            run.train,
            num_steps,
            num_people=len(people),
            rates=source.attributes[rows].mean(axis=0),
        )
        if checkpoints.latest() is not None:
            restored: Any = checkpoints.restore(cast("Any", state))  # takes any state of a run
            state = restored
        start = int(state.step)
        if start >= num_steps:
            return state
        step = make_step(model, config, run.train, num_steps)
        batches = data.train_batches(
            data.on_device(source) if run.data.device_resident else source,
            batch_size=run.train.batch_size,
            seed=run.train.seed,
            start_step=start,
        )
        clock = time.perf_counter()
        with hosts.StopSignals() as stop, Records(workdir, start) as records:
            for index in range(start + 1, num_steps + 1):
                batch = next(batches)
                classes = np.searchsorted(people, batch.identities).astype(np.int32)
                state, info = step(state, batch.images, batch.attributes, classes)
                asked = stop.asked and index < num_steps
                save = asked or index == num_steps or index % run.train.checkpoint_every == 0
                if save or index % run.train.log_every == 0:
                    values = {
                        field.name: float(getattr(info, field.name))
                        for field in dataclasses.fields(info)
                    }
                    if not np.isfinite(values["loss"]):
                        raise fitting.DivergedError(
                            f"The loss is {values['loss']} at step {index}. Lower "
                            f"--learning-rate or --adversary-weight."
                        )
                    seconds = time.perf_counter() - clock
                    records.write(index, **values, seconds=seconds)
                    say(f"step {index} of {num_steps}: " + _listed(values))
                if save:
                    if not training.all_finite(state.variables):
                        raise fitting.DivergedError(
                            f"The network holds NaN or infinities at step {index}. Lower "
                            f"--learning-rate or --adversary-weight."
                        )
                    checkpoints.save(cast("Any", state))
                if asked:
                    raise fitting.StoppedError(
                        f"Stopped after step {index} of {num_steps}; everything is saved in "
                        f"{workdir}. The same command goes on from there."
                    )
    return state


def check(run: RunConfig, workdir: Path, image_size: ImageSize) -> None:
    """Raises ``UsageError``, before images are read, as ``fit`` on images of that size would.

    What ``facemix train`` alone does is refused, too.
    """
    if (run.model.network, run.model.cut, run.defense.defense) != ("anonymizer", 1, "none"):
        raise _validate.UsageError(
            f"The network is {run.model.network!r} at cut {run.model.cut} with the defence "
            f"{run.defense.defense!r}, but the anonymizer is the network 'anonymizer' at cut 1 "
            f"with the defence 'none'. Leave these options out."
        )
    plain = DefenseConfig(defense="none")
    for part, default, names in (
        (run.model, ModelConfig(), ("tile", "centre")),
        (run.defense, plain, [field.name for field in dataclasses.fields(plain)]),
        (run.train, training.TrainConfig(), ("isometry", "statistics")),
        (run.data, data.DataConfig(), ("distinct_people",)),
        (run.mesh, sharding.MeshConfig(), ("seed_devices", "data_devices", "model_devices")),
    ):
        for name in names:
            value, usual = getattr(part, name), getattr(default, name)
            if value != usual:
                raise _validate.UsageError(
                    f"{name} is {value!r}, but the anonymizer is trained with {usual!r} only, on "
                    f"one device. Leave --{name.replace('_', '-')} out."
                )
    claims.check_claim(workdir, run, anonymizer=True)
    runs.check_parts(run, image_size)


def _claim_options(path: Path, config: AnonymizerConfig, saved: int | None) -> None:
    wanted = dataclasses.asdict(config)
    text = json.dumps(wanted, indent=2)
    if saved is not None and path.read_text() != text:
        raise _validate.UsageError(
            f"{path} holds other options than {wanted}. Give the same ones, or another --workdir."
        )
    write_atomically(path, text)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _optimizer(train: training.TrainConfig, num_steps: int) -> optax.GradientTransformation:
    return optax.adamw(
        training.learning_rate(train, num_steps),
        b2=train.adam_b2,
        weight_decay=train.weight_decay,
        nesterov=train.nesterov,
    )
