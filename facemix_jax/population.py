"""Runs that train together in one program: they differ in seed, learning rate and weight decay.

``vmap`` computes all of a device's runs at once, which turns convolutions into grouped ones;
``dense`` as well, with ``facemix_jax.models.dense`` in their place; ``loop`` takes the runs in
turn, one compiled program for all. Which is faster depends on the device and the width, so
``calibrate`` measures. Over the mesh's ``seed`` axis each device set computes its own runs
(``shard_map``), without traffic between them.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from facemix_jax import sharding
from facemix_jax._types import Array, HostArray
from facemix_jax.models import dense
from facemix_jax.training import PureStep, Scalars, StepInfo, TrainState

METHODS = ("auto", "loop", "vmap", "dense")
_TIMED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled step of some runs, and how what it takes is put together and taken apart.

    Attributes:
        size: how many runs.
        mesh: over which devices.
        step: ``(state, images, attributes, scalars) -> (state, info)``; the state is donated. All
            have an axis of runs in front, unless there is one run only.
        stack: states of single runs, laid out as ``sharding.shardings`` says, to the one that
            ``step`` takes.
        member: the state of one of the runs, laid out for a checkpoint.
    """

    size: int
    mesh: Mesh
    step: Callable[[TrainState, Array, Array, Scalars], tuple[TrainState, StepInfo]]
    stack: Callable[[Sequence[TrainState]], TrainState]
    member: Callable[[TrainState, int], TrainState]

    def local_runs(self) -> range:
        """Which of the runs have a part on this process, so that it reads their batches."""
        return sharding.process_runs(self.mesh, self.size) if self.size > 1 else range(1)

    def put(self, parts: Sequence[Array | HostArray], batch_size: int) -> Array:
        """Lays out the batches of ``local_runs``, each ``[b, ...]``: this process's part."""
        place = sharding.batch_sharding(self.mesh, stacked=self.size > 1)
        if self.size == 1:
            return sharding.put_batch(parts[0], place, (batch_size,))
        stack = jnp.stack if isinstance(parts[0], jax.Array) else np.stack
        return sharding.put_batch(stack(parts), place, (self.size, batch_size))

    def scalars(self, each: Sequence[Scalars]) -> Scalars:
        """The runs' scalars as ``step`` takes them."""
        if self.size == 1:
            return each[0]
        place = NamedSharding(self.mesh, PartitionSpec("seed"))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        return sharding.put(stacked, jax.tree.map(lambda _: place, stacked))


def build(
    step: PureStep, like: TrainState, mesh: Mesh, size: int, *, dense_convolutions: bool = False
) -> Program:
    """Compiles a step for ``size`` runs.

    Args:
        step: of one run.
        like: the state of one run.
        mesh: its ``seed`` axis divides ``size``.
        size: how many runs.
        dense_convolutions: whether runs of one device share them; see ``facemix_jax.models.dense``.
    """
    lanes = mesh.shape["seed"]
    alone = sharding.shardings(mesh, like)
    if size == 1:
        replicated = NamedSharding(mesh, PartitionSpec())
        compiled = jax.jit(step, donate_argnums=0, out_shardings=(alone, replicated))
        return Program(
            1,
            mesh,
            compiled,
            lambda states: states[0],
            lambda state, index: state,
        )

    def in_turn(*args: Any) -> Any:
        result = step(*jax.tree.map(lambda leaf: leaf[0], args))
        return jax.tree.map(lambda leaf: leaf[None], result)

    def at_once(*args: Any) -> Any:
        with dense.convolutions() if dense_convolutions else contextlib.nullcontext():
            return jax.vmap(step)(*args)

    # One run for each set of devices needs no grouped convolutions.
    several = in_turn if size == lanes else at_once
    if lanes > 1:
        runs = PartitionSpec("seed")
        several = jax.shard_map(
            several, mesh=mesh, in_specs=runs, out_specs=runs, axis_names={"seed"}
        )
    stacked_like = jax.eval_shape(lambda s: jax.tree.map(lambda x: jnp.stack([x] * size), s), like)
    together = sharding.shardings(mesh, stacked_like, stacked=True)
    of_runs = NamedSharding(mesh, PartitionSpec("seed"))
    stack = jax.jit(
        lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
        out_shardings=together,
    )
    take = jax.jit(lambda tree, index: jax.tree.map(lambda x: x[index], tree), out_shardings=alone)
    return Program(
        size,
        mesh,
        jax.jit(several, donate_argnums=0, out_shardings=(together, of_runs)),
        lambda states: stack(*states),
        lambda state, index: take(state, np.int32(index)),
    )


def size(method: str, num_runs: int, mesh: Mesh) -> int:
    """How many runs a program takes: all of them, or one for each set of devices."""
    return mesh.shape["seed"] if method == "loop" else num_runs


def calibrate(
    step: PureStep,
    states: Sequence[TrainState],
    images: Array | HostArray,
    attributes: HostArray,
    scalars: Sequence[Scalars],
    mesh: Mesh,
    batch_size: int,
) -> dict[str, float]:
    """Seconds that a step of all runs takes by each method; infinite where memory runs out.

    ``dense`` is left out on a CPU, which has no idle units to give to its products.

    Args:
        step: of one run.
        states: of the runs; they are copied.
        images: this process's part of a batch, uint8 ``[b, H, W, 3]``; all runs get the same.
        attributes: integer ``[b, K]``.
        scalars: of the runs.
        mesh: see ``sharding.make_mesh``.
        batch_size: of all processes together.
    """
    seconds = {}
    for method in ("loop", "vmap") if jax.default_backend() == "cpu" else METHODS[1:]:
        count = size(method, len(states), mesh)
        program = build(step, states[0], mesh, count, dense_convolutions=method == "dense")
        copies = len(program.local_runs())
        batch = [program.put([x] * copies, batch_size) for x in (images, attributes)]
        mine = program.scalars(scalars[:count])
        found = []
        try:
            state = program.stack([jax.tree.map(jnp.copy, s) for s in states[:count]])
            for _ in range(1 + _TIMED_STEPS):
                began = time.perf_counter()
                state, _ = program.step(state, batch[0], batch[1], mine)
                jax.block_until_ready(state)
                found.append(time.perf_counter() - began)
            seconds[method] = statistics.median(found[1:]) * (len(states) // count)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds[method] = float("inf")
    return seconds
