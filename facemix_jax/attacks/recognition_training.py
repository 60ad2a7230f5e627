"""Training of the attackers that recognise: main itself, with a fresh head, under fresh secrets.

An attacker starts from the weights that the cloud runs. It is trained on what the owner recovers of
its own images first, which it can make as it knows pre and the defence, then on protected ones. The
first half alone is what the owner gets; without it, the set-valued attackers, which are told who is
in a group but not which row shows whom, hardly learn anything even from unprotected activations.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import inference, mixing
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.attacks import learning
from facemix_jax.attacks.base import AttackConfig, Target
from facemix_jax.attacks.networks import group_head
from facemix_jax.defenses import Defense, none
from facemix_jax.models import SplitModel

_LEARNING_RATE = 1e-3

Loss = Callable[[Array, Array], Array]
"""``(logits [G, m, outputs], labels [G, m, ...]) -> loss``: the order of the ``m`` is unknown."""

Predict = Callable[[Array], HostArray]
"""``[B, ...]``, rows of groups together, to logits float32 ``[B / m, m, outputs]``."""


def attribute_loss(logits: Array, labels: Array) -> Array:
    """Binary cross-entropy under the assignment of answers to members that minimises it.

    Args:
        logits: float32 ``[G, m, K]``.
        labels: 0/1 ``[G, m, K]``, the members in any order.
    """
    labels = labels.astype(jnp.float32)
    if logits.shape[1] > 1:
        cost = optax.sigmoid_binary_cross_entropy(logits[:, :, None], labels[:, None]).mean(-1)
        rows, members = jax.vmap(optax.assignment.hungarian_algorithm)(jax.lax.stop_gradient(cost))
        return jnp.mean(jax.vmap(lambda c, i, j: c[i, j])(cost, rows, members))
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def presence(logits: Array) -> Array:
    """Log of the mean over rows of each row's distribution over people: ``[G, m, P]``, ``[G, P]``.

    It does not depend on the rows' order: who is in the group, whichever row says so.
    """
    log_mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1)
    return log_mean - jnp.log(jnp.float32(logits.shape[1]))


def identity_loss(logits: Array, labels: Array) -> Array:
    """Cross-entropy of who is in the group.

    Args:
        logits: float32 ``[G, m, P]``.
        labels: int ``[G, m]``, the members' classes in any order.
    """
    return -jnp.mean(jnp.take_along_axis(presence(logits), labels, axis=1))


class _Network(NamedTuple):
    """An attacker's weights; ``statistics`` is all of main's variables but its parameters."""

    params: dict[str, Any]
    statistics: dict[str, Any]


class _State(NamedTuple):
    network: _Network
    opt_state: Any


class Trained(NamedTuple):
    """What was trained to recognise.

    Attributes:
        attacker: asked about the rows of a group together.
        owner: asked about single rows as the owner recovers them.
        separated: asked about single rows as one without the key has them who undid the mixing.
    """

    attacker: Predict
    owner: Predict
    separated: Predict


def train_networks(
    target: Target,
    group_size: int,
    outputs: int,
    loss: Loss,
    rows: HostArray,
    labels: HostArray,
    rng_key: RngKey,
    config: AttackConfig,
    *,
    separates: bool = False,
) -> Trained:
    """Trains the attacker and what the owner gets: the same network on what the owner recovers.

    The owner, who knows which row is whose, asks about single rows. Where the defence has no key,
    the owner sees what the attacker sees, and both are the same.

    Args:
        target: the system.
        group_size: ``m``, rows that are asked about together: 1, or the defence's group size.
        outputs: numbers per row.
        loss: of a network that does not know the order of members.
        rows: int ``[n]``, the attacker's own images.
        labels: ``[N, ...]``, for every image of the source.
        rng_key: consumed.
        config: effort.
        separates: whether ``separated`` is asked, too, which blinding needs a training for; it is
            the owner's network otherwise.

    Raises:
        DataError: a training diverged.
    """
    head_key, owner_key, attacker_key = jax.random.split(rng_key, 3)
    encoder = inference.main_variables(target.variables, none())
    head = group_head(outputs=outputs)
    start = _Network(
        {
            "encoder": encoder.get("params", {}),
            "head": head.init(head_key, target.model.spec.response_shape[0]),
        },
        {name: value for name, value in encoder.items() if name != "params"},
    )
    # Groups of the defence and of the question are the same, or one of them is a single row.
    size = learning.batch_size(config, max(group_size, target.defense.group_size))

    def trained(start: _Network, system: Target, asked: int, rng_key: RngKey) -> _Network:
        question = _Question(target.model, outputs, asked, loss, config.steps)

        def step(
            state: _State, pre: Variables, rng_key: RngKey, images: Array, labels: Array
        ) -> tuple[_State, Array]:
            z = _seen(system.model, system.defense, pre, rng_key, images)
            return _improve(question, state, z, labels)

        state = _State(start, _optimizer(config.steps).init(start.params))
        return learning.train(
            step, state, system, rows, labels, size=size, steps=config.steps, rng_key=rng_key
        ).network

    owned, opened = (learning.recovered(target, keyless=keyless) for keyless in (False, True))
    owner = trained(start, owned, 1, owner_key)
    attacker = separated = owner
    if target.defense.name != "none":
        attacker = trained(owner, target, group_size, attacker_key)
    if separates and opened.defense is not owned.defense:
        separated = trained(start, opened, 1, owner_key)

    def predictor(network: _Network, asked: int) -> Predict:
        question = _Question(target.model, outputs, asked, loss, config.steps)

        def predict(z: Array) -> HostArray:
            padded = mixing.pad_groups(z, size)  # so that one program serves all parts
            parts = [
                _answer(question, network, padded[i : i + size])
                for i in range(0, len(padded), size)
            ]
            return np.concatenate(parts).reshape(-1, group_size, outputs)[: len(z) // group_size]

        return predict

    if not target.defense.keyed:
        owner = attacker
    return Trained(predictor(attacker, group_size), predictor(owner, 1), predictor(separated, 1))


class _Question(NamedTuple):
    """What is asked of a network; hashable, so that equal questions are compiled once."""

    model: SplitModel
    outputs: int
    group_size: int
    loss: Loss
    steps: int


def _optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(learning.cosine(_LEARNING_RATE, steps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _seen(
    model: SplitModel, defense: Defense, pre: Variables, rng_key: RngKey, images: Array
) -> Array:
    flip_key, secret_key = jax.random.split(rng_key)
    return learning.protect(model, defense, pre, secret_key, learning.mirrored(flip_key, images))


def _logits(question: _Question, head: Variables, features: Array) -> Array:
    return group_head(outputs=question.outputs).apply(
        head, mixing.group(features, question.group_size)
    )


@functools.partial(jax.jit, static_argnums=0)
def _improve(question: _Question, state: _State, z: Array, labels: Array) -> tuple[_State, Array]:
    """One training step on ``[B, ...]`` as the cloud sees it."""
    network = state.network

    def loss_of(params: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        variables = {**network.statistics, "params": params["encoder"]}
        features, variables = question.model.main.train(variables, z)
        logits = _logits(question, params["head"], features)
        statistics = {n: v for n, v in variables.items() if n != "params"}
        return question.loss(logits, mixing.group(labels, question.group_size)), statistics

    (value, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(network.params)
    updates, opt_state = _optimizer(question.steps).update(gradient, state.opt_state)
    params = optax.apply_updates(network.params, updates)
    return _State(_Network(params, statistics), opt_state), value


@functools.partial(jax.jit, static_argnums=0)
def _answer(question: _Question, network: _Network, z: Array) -> Array:
    variables = {**network.statistics, "params": network.params["encoder"]}
    return _logits(question, network.params["head"], question.model.main(variables, z))
