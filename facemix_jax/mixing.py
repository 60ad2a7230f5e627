"""Mixing and unmixing (paper, sections 3.3 and 3.5).

A group of ``M`` activations becomes ``M`` linear combinations of them under a secret matrix
(equation 4); after main, the inverse combination is applied (equation 6). Matrices are Haar
orthogonal by default (section 3.4), one for each group, and the mixtures of all groups are
shuffled before they are sent (section 3.5).

Mixing is not a cipher: ``facemix_jax.attacks.separation`` undoes it in under a second.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from facemix_jax import _validate, group_products
from facemix_jax._types import Array, RngKey
from facemix_jax.group_products import PRECISION


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class MixKey:
    """The secret of one request.

    Attributes:
        matrix: ``[G, M, M]``, one matrix per group; row ``k`` makes mixture ``k``.
        inverse: ``[G, M, M]``, its inverse: the transpose for the orthogonal families.
        order: int32 ``[B]``; position ``p`` of what is sent holds mixture ``order[p]``. None
            where nothing is shuffled.
        deal: int32 ``[B]``; place ``r`` among the groups holds example ``deal[r]``. None where
            consecutive examples form a group.
    """

    matrix: Array
    inverse: Array
    order: Array | None = None
    deal: Array | None = None

    def __repr__(self) -> str:
        """Shows shapes only: the values are the secret."""
        order = "none" if self.order is None else self.order.shape
        return f"MixKey(matrix: {self.matrix.shape}, order: {order}, values hidden)"

    @property
    def group_size(self) -> int:
        """``M``."""
        return self.matrix.shape[-1]

    @property
    def batch_size(self) -> int:
        """``B = G * M``."""
        return self.matrix.shape[0] * self.matrix.shape[1]


Family = Callable[[RngKey, int, int], tuple[Array, Array]]
"""Draws ``(matrix, inverse)``, each float ``[G, M, M]``, from ``(rng_key, G, M)``."""


def haar(rng_key: RngKey, num_groups: int, group_size: int) -> tuple[Array, Array]:
    """Haar-distributed orthogonal matrices: "randomly chosen" (section 3.4), as we read it.

    On CUDA they come from ``reflections``, elsewhere from ``jax.random.orthogonal``: the same
    distribution, not the same matrices.
    """
    matrix = jax.lax.platform_dependent(
        rng_key,
        cuda=lambda k: reflections(k, num_groups, group_size),
        default=lambda k: jax.random.orthogonal(k, group_size, (num_groups,)),
    )
    return matrix, matrix.mT


def reflections(rng_key: RngKey, num_groups: int, group_size: int) -> Array:
    """Haar-distributed orthogonal matrices by products of matrices alone (Stewart, 1980).

    The orthogonal factor of a Gaussian matrix is a product of ``M`` Householder reflections of
    independent Gaussian vectors, in the compact form ``I - U T U^T`` (Joffrain et al., 2006, for
    ``T``). The solver that factors matrices on a GPU takes them one after another; this takes
    all at once.

    Args:
        rng_key: consumed.
        num_groups: ``G``.
        group_size: ``M``.

    Returns:
        ``[G, M, M]``.
    """
    eye = jnp.eye(group_size)[None]
    below = jnp.tril(jax.random.normal(rng_key, (num_groups, group_size, group_size)))
    sign = jnp.where(jnp.sum(below * eye, axis=1, keepdims=True) < 0, -1.0, 1.0)
    normals = below + sign * jnp.linalg.norm(below, axis=1, keepdims=True) * eye
    normals = normals / jnp.linalg.norm(normals, axis=1, keepdims=True)
    gram = jnp.matmul(normals.mT, normals, precision=PRECISION)
    weighted = jax.lax.linalg.triangular_solve(jnp.triu(gram, 1) + 0.5 * eye, normals)
    return -sign * (eye - jnp.matmul(weighted, normals.mT, precision=PRECISION))


def signed_permutation(rng_key: RngKey, num_groups: int, group_size: int) -> tuple[Array, Array]:
    """Permutations with random signs: orthogonal, but nothing is mixed (a study's lower end)."""
    sign_key, order_key = jax.random.split(rng_key)
    signs = jax.random.rademacher(sign_key, (num_groups, group_size, 1), float)
    orders = jax.vmap(lambda k: jax.random.permutation(k, group_size))(
        jax.random.split(order_key, num_groups)
    )
    matrix = signs * jnp.eye(group_size)[orders]
    return matrix, matrix.mT


def hadamard(rng_key: RngKey, num_groups: int, group_size: int) -> tuple[Array, Array]:
    """Hadamard matrices with random signs of rows and columns, over ``sqrt(M)``.

    Every image enters every mixture with the same weight up to sign.

    Raises:
        UsageError: ``group_size`` is not a power of two.
    """
    if group_size & (group_size - 1):
        raise _validate.UsageError(
            f"group_size is {group_size}, but the hadamard family needs a power of two. "
            f"Use {1 << group_size.bit_length()}, or the family 'haar'."
        )
    base = jnp.ones((1, 1))
    while base.shape[0] < group_size:
        base = jnp.block([[base, base], [base, -base]])
    row_key, column_key = jax.random.split(rng_key)
    rows = jax.random.rademacher(row_key, (num_groups, group_size, 1), float)
    columns = jax.random.rademacher(column_key, (num_groups, 1, group_size), float)
    matrix = rows * columns * base[None] / jnp.sqrt(float(group_size))
    return matrix, matrix.mT


def gaussian(rng_key: RngKey, num_groups: int, group_size: int) -> tuple[Array, Array]:
    """Independent ``N(0, 1/M)`` entries: not orthogonal, for studies of conditioning."""
    shape = (num_groups, group_size, group_size)
    matrix = jax.random.normal(rng_key, shape) / jnp.sqrt(float(group_size))
    return matrix, jnp.linalg.inv(matrix)


def conditioned(condition: float = 10.0) -> Family:
    """Matrices that are not orthogonal, with a bounded condition number.

    ``U S V^T`` with Haar ``U`` and ``V``, and singular values whose logarithms are uniform over
    an interval of length ``log(condition)``, scaled so that their squares average 1. Unmixing
    amplifies errors by at most the condition number (Golub and Van Loan, Matrix Computations, 2.6):
    with ``e`` added to the mixtures ``A x``, ``|x' - x| / |x| <= condition * |e| / |A x|``.

    Args:
        condition: the bound, the ratio of the largest singular value to the smallest.

    Raises:
        UsageError: the bound is below 1 or above 1000, where float32 leaves few digits.
    """
    _validate.in_range(1, 1000, condition=condition)

    def draw(rng_key: RngKey, num_groups: int, group_size: int) -> tuple[Array, Array]:
        left_key, right_key, value_key = jax.random.split(rng_key, 3)
        left, _ = haar(left_key, num_groups, group_size)
        right, _ = haar(right_key, num_groups, group_size)
        logs = jnp.log(condition) * jax.random.uniform(value_key, (num_groups, 1, group_size))
        values = jnp.exp(logs)
        values = values / jnp.sqrt(jnp.mean(values**2, axis=-1, keepdims=True))
        matrix = jnp.matmul(left * values, right.mT, precision=PRECISION)
        return matrix, jnp.matmul(right / values, left.mT, precision=PRECISION)

    return draw


FAMILIES: dict[str, Family] = {
    "haar": haar,
    "signed_permutation": signed_permutation,
    "hadamard": hadamard,
    "gaussian": gaussian,
    "conditioned": conditioned(),
}

NOT_ORTHOGONAL = frozenset({"gaussian", "conditioned"})
"""Families for which an attacker must not assume that the inverse is the transpose."""


def sample_mix_key(
    rng_key: RngKey,
    num_groups: int,
    group_size: int,
    *,
    family: Family | str = haar,
    shuffle: bool = True,
    deal_blocks: int = 0,
) -> MixKey:
    """Draws one matrix for each group, and the order in which the mixtures are sent.

    JAX's generator is not a source of secrets: use this for training, studies and tests, and
    operating-system entropy where a real person's picture leaves the device.

    Args:
        rng_key: consumed.
        num_groups: ``G``.
        group_size: ``M``.
        family: how matrices are drawn, by the name of one of ``FAMILIES``, or your own.
        shuffle: whether mixtures are shuffled across groups (section 3.5). Training leaves it
            out: main treats every row alike, so that the result is the same.
        deal_blocks: where positive, the batch is as many blocks of rows, such as one for each tile
            of a map, and in each its rows are dealt to the groups at random, so that the rows of
            an image that lie in different blocks have different company. 0: groups hold
            consecutive rows.

    Returns:
        A ``MixKey`` for ``B = G * M`` examples.

    Raises:
        UsageError: a size is not positive, a name is unknown, or blocks are negative in number or
            not whole groups.

    Example:
        >>> sample_mix_key(jax.random.key(0), num_groups=2, group_size=4)
        MixKey(matrix: (2, 4, 4), order: (8,), values hidden)
    """
    _validate.positive(num_groups=num_groups, group_size=group_size)
    _validate.in_range(0, num_groups, deal_blocks=deal_blocks)
    if isinstance(family, str):
        _validate.one_of(FAMILIES, family=family)
        family = FAMILIES[family]
    matrix_key, order_key = jax.random.split(rng_key)
    matrix, inverse = family(matrix_key, num_groups, group_size)
    order = jax.random.permutation(order_key, num_groups * group_size) if shuffle else None
    deal = None
    if deal_blocks:
        _validate.divides(deal_blocks, divisor_name="deal_blocks", num_groups=num_groups)
        size = num_groups * group_size // deal_blocks
        # Not 1: permutation() draws by split(order_key)[1], which is fold_in(order_key, 1).
        deal_keys = jax.random.split(jax.random.fold_in(order_key, 2**31), deal_blocks)
        dealt = jax.vmap(lambda k: jax.random.permutation(k, size))(deal_keys)
        deal = (dealt + size * jnp.arange(deal_blocks)[:, None]).reshape(-1)
    return MixKey(matrix=matrix, inverse=inverse, order=order, deal=deal)


def group(x: Array, group_size: int) -> Array:
    """Splits ``[B, ...]`` into groups of consecutive examples, ``[G, M, ...]``.

    Raises:
        UsageError: ``group_size`` does not divide ``B``.

    Example:
        >>> group(jnp.arange(6), 3).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    _validate.positive(group_size=group_size)
    _validate.divides(
        group_size,
        "Fill the last group with pad_groups, or choose another group size.",
        divisor_name="group_size",
        batch_size=x.shape[0],
    )
    return x.reshape(x.shape[0] // group_size, group_size, *x.shape[1:])


def pad_groups(x: Array, group_size: int) -> Array:
    """Repeats examples from the start until ``group_size`` divides the batch.

    The caller drops the extra rows afterwards. Filling with other pictures keeps every group
    mixed from ``M`` pictures; zeros would make mixtures of fewer. A batch smaller than a group
    repeats pictures within the group.

    Returns:
        ``[ceil(B / M) * M, ...]``; the first ``B`` rows are ``x``.

    Example:
        >>> pad_groups(jnp.arange(5), 4).tolist()
        [0, 1, 2, 3, 4, 0, 1, 2]
    """
    _validate.positive(group_size=group_size, batch_size=x.shape[0])
    missing = -x.shape[0] % group_size
    return jnp.concatenate([x, x[jnp.arange(missing) % x.shape[0]]]) if missing else x


def mix_group(matrix: Array, x: Array) -> Array:
    """Equation 4 for one group: ``mixed_k = sum_i matrix[k, i] x_i``.

    Computed in the matrix's dtype at the highest precision whatever the dtype of ``x``.

    Args:
        matrix: ``[M, M]``.
        x: ``[M, ...]``, any rank.

    Returns:
        ``[M, ...]`` in the matrix's dtype.
    """
    return group_products.multiply(matrix, x.reshape(x.shape[0], -1)).reshape(x.shape)


def mix(mix_key: MixKey, x: Array) -> Array:
    """Mixes every group and shuffles the mixtures across groups (equation 4, section 3.5).

    Args:
        mix_key: the secret for ``B`` examples.
        x: ``[B, ...]``, any rank.

    Returns:
        float ``[B, ...]``: what is sent.

    Raises:
        UsageError: the batch is not the one that the key was drawn for, or complex.

    Example:
        >>> swap = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
        >>> mix(MixKey(matrix=swap, inverse=swap.mT), jnp.array([[5.0], [7.0]])).tolist()
        [[7.0], [5.0]]
    """
    _check_batch(mix_key, x)
    if mix_key.deal is not None:
        x = x[mix_key.deal]
    mixed = jax.vmap(mix_group)(mix_key.matrix, group(x, mix_key.group_size))
    mixed = mixed.reshape(x.shape)
    return mixed if mix_key.order is None else mixed[mix_key.order]


def unmix(mix_key: MixKey, y: Array) -> Array:
    """Undoes the shuffling and the mixing (equation 6).

    Args:
        mix_key: the one that ``mix`` used.
        y: ``[B, ...]``: what came back, in the order in which it was sent; any rank.

    Returns:
        float ``[B, ...]`` in the order of the examples.

    Raises:
        UsageError: the batch is not the one that the key was drawn for, or complex.

    Example:
        >>> mix_key = sample_mix_key(jax.random.key(0), num_groups=2, group_size=4)
        >>> x = jnp.arange(24.0).reshape(8, 3)
        >>> bool(jnp.allclose(unmix(mix_key, 5 * mix(mix_key, x)), 5 * x, atol=1e-3))
        True
    """
    _check_batch(mix_key, y)
    if mix_key.order is not None:
        y = y[jnp.argsort(mix_key.order)]
    unmixed = jax.vmap(mix_group)(mix_key.inverse, group(y, mix_key.group_size))
    unmixed = unmixed.reshape(y.shape)
    return unmixed if mix_key.deal is None else unmixed[jnp.argsort(mix_key.deal)]


def _check_batch(mix_key: MixKey, x: Array) -> None:
    if jnp.iscomplexobj(x):
        raise _validate.UsageError(
            f"The batch is {x.dtype}, but real numbers are mixed. Mix real and imaginary parts "
            f"side by side."
        )
    if x.shape[0] != mix_key.batch_size:
        raise _validate.UsageError(
            f"The batch has {x.shape[0]} examples, but the mix key was drawn for "
            f"{mix_key.batch_size}. Draw a fresh key with sample_mix_key for every batch."
        )
