"""Devices as a mesh over runs, examples and main's channels, and what of a run lies where.

* ``seed``: runs that differ in their seed or scalars only; no traffic between its devices.
* ``data``: examples of a batch. A group never straddles devices, so mixing is local.
* ``model``: output channels of main (tensor parallel); pre and post are the edge's, and whole.

The step itself knows nothing of this: ``jit`` divides it by where its arguments lie.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray
from facemix_jax._validate import UsageError

AXES = ("seed", "data", "model")

_WHOLE = 2**14
"""Moments of fewer elements are not divided over ``data``: sending them costs more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices share what. No part of a run: it may be resumed on others.

    Attributes:
        seed_devices: sets of devices among which runs trained together are dealt; 0 for as many
            as divide both.
        data_devices: devices among which a batch is dealt; 0 for all that remain, or in one
            process for the most of them that get whole groups.
        model_devices: devices among which main's output channels are dealt.
    """

    seed_devices: int = 0
    data_devices: int = 0
    model_devices: int = 1

    def __post_init__(self) -> None:
        """Checks ranges."""
        _validate.in_range(
            0, math.inf, seed_devices=self.seed_devices, data_devices=self.data_devices
        )
        _validate.positive(model_devices=self.model_devices)


def make_mesh(config: MeshConfig, *, num_runs: int = 1, num_groups: int = 0) -> Mesh:
    """The mesh ``[seed, data, model]`` over the devices of all processes.

    Args:
        config: its sizes.
        num_runs: trained together.
        num_groups: of a batch, which limit ``data_devices`` where those are 0; 0 for no limit.
            Several processes have no limit either: each must have a part in the run.

    Raises:
        UsageError: there are too few devices, or the sizes do not fit.
    """
    devices = jax.devices()
    model = config.model_devices
    rest = len(devices) // model
    seed = config.seed_devices or math.gcd(
        num_runs, rest // config.data_devices if config.data_devices else rest
    )
    data = config.data_devices or rest // max(seed, 1)
    if not config.data_devices and jax.process_count() == 1:
        data = max((n for n in range(1, data + 1) if num_groups % n == 0), default=0)
    wanted = seed * data * model
    if not 0 < wanted <= len(devices):
        raise UsageError(
            f"seed_devices {seed} x data_devices {data or 1} x model_devices {model} need "
            f"{seed * (data or 1) * model} devices, but there are {len(devices)}. Give smaller "
            f"numbers, or 0 for data_devices to take what there is."
        )
    _validate.divides(seed, divisor_name="seed_devices", num_runs=num_runs)
    if jax.process_count() > 1 and wanted < len(devices):
        raise UsageError(
            f"seed_devices {seed} x data_devices {data} x model_devices {model} leave out "
            f"{len(devices) - wanted} of the {len(devices)} devices of {jax.process_count()} "
            f"processes. Give sizes whose product is {len(devices)}, or start fewer processes."
        )
    return jax.make_mesh(
        (seed, data, model), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:wanted]
    )


def check_batch(mesh: Mesh, batch_size: int, group_size: int) -> None:
    """Raises ``UsageError`` unless every device gets whole groups."""
    data = mesh.shape["data"]
    if batch_size % (data * group_size):
        unit = data * group_size
        below, above = batch_size - batch_size % unit, batch_size + -batch_size % unit
        fits = max(n for n in range(1, data + 1) if batch_size % (n * group_size) == 0)
        raise UsageError(
            f"batch_size {batch_size} is no multiple of {unit}, data_devices {data} times "
            f"group_size {group_size}, so that a group would straddle devices. Use batch_size "
            f"{f'{below} or {above}' if below else above}, or data_devices {fits}."
        )


def batch_sharding(mesh: Mesh, *, stacked: bool = False) -> NamedSharding:
    """Where a batch ``[B, ...]`` lies; with ``stacked`` those of several runs, ``[S, B, ...]``."""
    return NamedSharding(mesh, PartitionSpec("seed", "data") if stacked else PartitionSpec("data"))


def shardings(mesh: Mesh, tree: Any, *, stacked: bool = False) -> Any:
    """Where each leaf of a ``TrainState`` or of variables lies.

    Main's kernels, biases, BatchNorm scales, shifts and statistics are divided over ``model``
    along their last axis where that divides, and so are the optimiser's moments of them; the
    moments are divided over ``data`` too (ZeRO; Rajbhandari et al., 2020), since each is needed
    once in a step only.

    Args:
        mesh: see ``make_mesh``.
        tree: arrays or ``jax.ShapeDtypeStruct``.
        stacked: whether every leaf has an axis of runs in front.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        axes: list[str | None] = [None] * leaf.ndim
        first = 0
        if stacked:
            axes[0], first = "seed", 1
        names = {getattr(part, "key", getattr(part, "name", None)) for part in path}
        sizes = leaf.shape[first:]
        model, data = mesh.shape["model"], mesh.shape["data"]
        if "main" in names and sizes and model > 1 and sizes[-1] % model == 0:
            axes[-1] = "model"
        if "opt_state" in names and data > 1 and math.prod(sizes) >= _WHOLE:
            free = (a for a in range(first, leaf.ndim) if axes[a] is None)
            divisible = next((a for a in free if leaf.shape[a] % data == 0), None)
            if divisible is not None:
                axes[divisible] = "data"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(place, tree)


def put(tree: Any, places: Any) -> Any:
    """Lays a tree out; every process holds all of it and keeps its part.

    Args:
        tree: host arrays, or arrays that this process can read.
        places: a ``NamedSharding`` for each leaf.
    """
    return jax.tree.map(_put, tree, places)


def _put(x: Any, place: NamedSharding) -> Array:
    if jax.process_count() == 1:
        return jax.device_put(x, place)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(x), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def put_batch(x: Array | HostArray, place: NamedSharding, sizes: tuple[int, ...]) -> Array:
    """Lays a batch out of which every process has its own part.

    Args:
        x: ``[b, ...]``, or ``[s, b, ...]`` where ``place`` is that of stacked batches.
        place: see ``batch_sharding``.
        sizes: ``(B,)`` or ``(S, B)``, of all processes together.
    """
    if jax.process_count() == 1:
        return jax.device_put(x, place)
    shape = (*sizes, *x.shape[len(sizes) :])
    return jax.make_array_from_process_local_data(place, np.asarray(x), shape)


def process_part(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Which part of every batch this process reads: its index and how many parts there are.

    Processes whose devices share examples (``model`` or ``seed`` spans them) read the same part.
    """
    rows = _span(batch_sharding(mesh), (batch_size,), 0)
    return rows.start // len(rows), batch_size // len(rows)


def process_runs(mesh: Mesh, num_runs: int) -> range:
    """Which of the stacked runs have a part on this process."""
    return _span(batch_sharding(mesh, stacked=True), (num_runs, mesh.shape["data"]), 0)


def _span(place: NamedSharding, shape: tuple[int, ...], axis: int) -> range:
    indices = place.addressable_devices_indices_map(shape).values()
    parts = [index[axis].indices(shape[axis]) for index in indices if index is not None]
    return range(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


def gather(tree: Any, mesh: Mesh) -> Any:
    """The whole of a tree on this process's first device, whatever lay where.

    All processes call it together.
    """
    if mesh.size == 1:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    copied = jax.jit(lambda x: x, out_shardings=whole)(tree)
    device = jax.local_devices()[0]

    def local(x: Array) -> Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                local(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jax.device_put(np.asarray(x.addressable_shards[0].data), device)

    return jax.tree.map(local, copied)
