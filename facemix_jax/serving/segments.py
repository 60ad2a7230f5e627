"""The edge's share of a work directory: pre, mixing, unmixing and post, one group at a time.

Every function is compiled once, for one group of ``M`` rows, whatever the size of a request; on a
CPU this is also faster than larger batches, as a group stays in the cache.
"""

import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import checkpoint, data, defenses, inference, mixing, run_images, runs
from facemix_jax._types import Array, HostArray, Variables
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.data.face_model import ATTRIBUTE_NAMES
from facemix_jax.mixing import MixKey
from facemix_jax.models import Spec, SplitModel
from facemix_jax.serving import loading, wire

_SAME = 0.02
"""How far a spot-checked answer may be off, as a part of the row's largest value: int8 and
bfloat16 on the way, other batch sizes, other processors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """What runs on the edge.

    Attributes:
        spec: shapes of the network.
        model_id: of the main that belongs to it; see ``wire.model_id``.
        step: training steps done.
        attribute_names: ``K`` names.
        group_size: ``M``; rows that go through ``pre`` and ``post`` together.
        protected: whether activations are mixed; False for a run with the defence ``none``.
        wire: what rows were rounded to in training, one of ``wire.DTYPES``.
        pre: uint8 ``[M, H, W, 3]`` to activations float32 ``[M, h, w, C]``.
        post: features ``[M, D]`` to logits float32 ``[M, K, classes]``.
        main: ``[M, h, w, C]`` to ``[M, D]``, to check the cloud; None unless it was loaded.
    """

    spec: Spec
    model_id: str
    step: int
    attribute_names: tuple[str, ...]
    group_size: int
    protected: bool
    wire: str
    pre: Callable[[Array | HostArray], Array]
    post: Callable[[Array], Array]
    main: Callable[[HostArray], Array] | None


def load(workdir: Path, *, with_main: bool = False) -> Segments:
    """Loads the edge's segments of the newest checkpoint; the run's images are not needed.

    Args:
        workdir: of a training run.
        with_main: keep main as well, to check the cloud's answers.

    Raises:
        UsageError: nothing usable is there, or the run is protected by something else than mixing
            by the family Haar, or by layers that clients do not speak.
        FacemixError: the files cannot be read.
    """
    config = runs.read_config(workdir)
    if config.defense.defense not in ("none", "facemix"):
        raise UsageError(
            f"{workdir} was trained with the defence {config.defense.defense!r}, but as processes "
            f"edge and cloud run 'facemix' and 'none'. Use facemix_jax.infer in one process."
        )
    if config.defense.defense != "none" and config.defense.family != "haar":
        raise UsageError(
            f"{workdir} was trained with the family {config.defense.family!r}, but keys are drawn "
            f"from 'haar'. Train with --family haar."
        )
    directory, step, model, like = loading.find(workdir)
    layers = config.defense.noise, config.defense.decoys, config.defense.blinding
    if model.spec.tiles > 1 or any(layers) or config.defense.clouds > 1:
        raise UsageError(
            f"{workdir} was trained with tiles, noise, decoys, blinding or several clouds, which "
            f"clients do not speak yet. Serve a run without --tile, --noise, --decoys, --blinding "
            f"and --clouds."
        )
    if config.defense.wire not in wire.DTYPES:
        raise UsageError(
            f"{workdir} was trained with rows rounded to {config.defense.wire!r}, which no client "
            f"sends. Train with --wire int8, bfloat16 or float32."
        )
    variables = {
        # At cut 0 pre has no variables, and nothing was written.
        name: checkpoint.restore_segment(directory, step, name, part) if part else part
        for name, part in like.items()
    }
    protected = config.defense.defense != "none"
    defense = defenses.build(config.defense, tiles=model.spec.tiles)
    main = inference.main_variables(variables, defense)

    pre, post = _jitted_edge(model)
    return Segments(
        spec=model.spec,
        model_id=wire.model_id(main, model.spec),
        step=step,
        attribute_names=_attribute_names(workdir, config, model.spec.logits_shape[0]),
        group_size=config.defense.group_size if protected else loading.UNMIXED_ROWS,
        protected=protected,
        wire=config.defense.wire,
        pre=functools.partial(pre, variables["pre"]),
        post=functools.partial(post, variables["post"]),
        main=functools.partial(loading.jitted_main(model), main) if with_main else None,
    )


def mix(key: MixKey, activations: Sequence[Array]) -> list[Array]:
    """Mixes every group, unshuffled; bit for bit what ``mixing.mix`` gives.

    One program for all groups: calls of their own would cost as much as the mixing of small maps.

    Args:
        key: the secret for ``G`` groups.
        activations: ``G`` arrays ``[M, h, w, C]``.
    """
    return jax.block_until_ready(_mix_groups(key.matrix, list(activations)))


def in_order(key: MixKey, mixtures: Sequence[Array]) -> HostArray:
    """The rows of all groups in the order of sending, float32 ``[B, h, w, C]``."""
    rows = np.empty((key.batch_size, *mixtures[0].shape[1:]), np.float32)
    place = np.empty(key.batch_size, np.int64)
    order = np.arange(key.batch_size) if key.order is None else np.asarray(key.order)
    place[order] = np.arange(key.batch_size)
    for index, group in enumerate(mixtures):
        rows[place[index * key.group_size :][: key.group_size]] = np.asarray(group)
    return rows


def unmix(key: MixKey, responses: HostArray) -> Array:
    """Undoes order and mixing: ``[B, D]`` as they came to ``[G, M, D]``."""
    rows = responses if key.order is None else responses[np.argsort(np.asarray(key.order))]
    groups = rows.reshape(-1, key.group_size, *rows.shape[1:])
    return jax.block_until_ready(_unmix_groups(key.inverse, groups))


def spot_check(
    main: Callable[[HostArray], Array],
    group_size: int,
    sent: HostArray,
    responses: HostArray,
    num_rows: int,
) -> None:
    """Compares secretly chosen rows of an answer with main.

    Args:
        main: of ``Segments``.
        group_size: ``M``, of its rows.
        sent: ``[B, h, w, C]`` as the cloud got them, rounding included.
        responses: ``[B, D]`` as they came.
        num_rows: how many rows to compare; at most ``B`` are.

    Raises:
        WireError: a row is not what main returns.
    """
    count = min(num_rows, len(responses))
    rows = secrets.SystemRandom().sample(range(len(responses)), k=count)
    padded = np.resize(rows, -(-count // group_size) * group_size).reshape(-1, group_size)
    expected = np.concatenate([main(sent[group]) for group in padded])[:count]
    far = np.abs(responses[rows] - expected).max(1) > _SAME * np.abs(expected).max(1)
    if far.any():
        raise wire.WireError(
            f"{far.sum()} of {count} spot-checked rows are not what main returns (off by more than "
            f"{_SAME:.0%}).",
            "The cloud is wrong or dishonest: do not use it until its operator has explained this.",
        )


_unmix_groups = jax.jit(jax.vmap(mixing.mix_group))


@jax.jit
def _mix_groups(matrices: Array, groups: list[Array]) -> list[Array]:
    return [mixing.mix_group(matrix, z) for matrix, z in zip(matrices, groups, strict=True)]


@functools.cache
def _jitted_edge(
    model: SplitModel,
) -> tuple[Callable[[Variables, Array | HostArray], Array], Callable[[Variables, Array], Array]]:
    """Pre, from uint8 images, and post, compiled once for all clients of one network.

    Both return float32, whatever the network computes in.
    """

    def pre(variables: Variables, images: Array | HostArray) -> Array:
        return model.pre(variables, data.normalize(images)).astype(jnp.float32)

    def post(variables: Variables, features: Array) -> Array:
        return model.post(variables, features).astype(jnp.float32)

    return jax.jit(pre), jax.jit(post)


def _attribute_names(workdir: Path, config: runs.RunConfig, count: int) -> tuple[str, ...]:
    """Names without reading images.

    For runs that do not say, those of the labels' file; numbers where it is not on this machine.
    """
    names = run_images.attribute_names(workdir)
    if names is None and config.data.dataset in ("celeba", "synthetic"):
        names = ATTRIBUTE_NAMES
    elif names is None:
        try:
            names = tuple(data.open_files(config.data).attribute_names)
        except FacemixError:
            names = ()
    return names if len(names) == count else tuple(f"attribute {k + 1}" for k in range(count))
