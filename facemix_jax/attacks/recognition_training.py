"""Training of the attackers that recognise: main itself, with a fresh head, under fresh secrets.

An attacker starts from the weights that the cloud runs. It is trained on unprotected activations of
its own images first, which it can make as it knows pre, then on protected ones. The first half
alone is what the owner gets; without it, the set-valued attackers, which are told who is in a
group but not which row shows whom, hardly learn anything even from unprotected activations.
"""

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
from facemix_jax.attacks.networks import Head, group_head

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


def train_pair(
    target: Target,
    group_size: int,
    outputs: int,
    loss: Loss,
    rows: HostArray,
    labels: HostArray,
    rng_key: RngKey,
    config: AttackConfig,
) -> tuple[Predict, Predict]:
    """Trains the attacker and what the owner gets: the same one on unprotected activations.

    Args:
        target: the system.
        group_size: ``m``, rows that are asked about together: 1, or the defence's group size.
        outputs: numbers per row.
        loss: of an attacker that does not know the order of members. The owner knows it.
        rows: int ``[n]``, the attacker's own images.
        labels: ``[N, ...]``, for every image of the source.
        rng_key: consumed.
        config: effort.

    Returns:
        The attacker and the owner.

    Raises:
        DataError: a training diverged.
    """
    head_key, owner_key, attacker_key = jax.random.split(rng_key, 3)
    plain = learning.unprotected(target)
    encoder = inference.main_variables(target.variables, plain.defense)
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

    def trained(start: _Network, system: Target, loss: Loss, rng_key: RngKey) -> _Network:
        step, state = _step(start, system, head, group_size, loss, config)
        return learning.train(
            step, state, system, rows, labels, size=size, steps=config.steps, rng_key=rng_key
        ).network

    def in_order(logits: Array, labels: Array) -> Array:
        rows = (x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:]) for x in (logits, labels))
        return loss(*rows)

    owner = trained(start, plain, in_order, owner_key)
    attacker = owner
    if target.defense.name != plain.defense.name:
        attacker = trained(owner, target, loss, attacker_key)
    apply = _apply(target, head, group_size)

    def predictor(network: _Network) -> Predict:
        def predict(z: Array) -> HostArray:
            padded = mixing.pad_groups(z, size)  # so that one program serves all parts
            parts = [apply(network, padded[i : i + size]) for i in range(0, len(padded), size)]
            return np.concatenate(parts)[: len(z) // group_size]

        return predict

    return predictor(attacker), predictor(owner)


def _step(
    start: _Network,
    target: Target,
    head: Head,
    group_size: int,
    loss: Loss,
    config: AttackConfig,
) -> tuple[Callable[[_State, Variables, RngKey, Array, Array], tuple[_State, Array]], _State]:
    """The jitted step and the state before the first."""
    optimizer = optax.adam(learning.cosine(_LEARNING_RATE, config))

    @jax.jit
    def step(
        state: _State, pre: Variables, rng_key: RngKey, images: Array, labels: Array
    ) -> tuple[_State, Array]:
        flip_key, secret_key = jax.random.split(rng_key)
        z = learning.protect(target, pre, secret_key, learning.mirrored(flip_key, images))
        network = state.network

        def loss_of(params: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
            variables = {**network.statistics, "params": params["encoder"]}
            features, variables = target.model.main.train(variables, z)
            logits = head.apply(params["head"], mixing.group(features, group_size))
            statistics = {n: v for n, v in variables.items() if n != "params"}
            return loss(logits, mixing.group(labels, group_size)), statistics

        (value, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(network.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        params = optax.apply_updates(network.params, updates)
        return _State(_Network(params, statistics), opt_state), value

    return step, _State(start, optimizer.init(start.params))


def _apply(target: Target, head: Head, group_size: int) -> Callable[[_Network, Array], Array]:
    @jax.jit
    def apply(network: _Network, z: Array) -> Array:
        variables = {**network.statistics, "params": network.params["encoder"]}
        features = target.model.main(variables, z)
        return head.apply(network.params["head"], mixing.group(features, group_size))

    return apply
