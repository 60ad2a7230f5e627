"""Aliases and the legend of shapes used in every docstring. No logic, no project imports.

Shapes are written in brackets, for example ``[B, H, W, C]``:

======  ==========================================================================
``B``   examples in a batch
``M``   group size: images mixed together (the paper's ``S_G`` and ``n``)
``G``   groups in a batch, ``B / M``
``H W`` height and width in pixels or activation positions
``C``   channels
``K``   attributes (40 in CelebA and LFWA)
``D``   features that main returns per example
``S``   seeds
``T``   tiles that pre's map is cut into, each a row of its own; 1 where it is not cut
======  ==========================================================================
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
HostArray: TypeAlias = np.ndarray
RngKey: TypeAlias = jax.Array
"""JAX randomness (``jax.random.key``): never a secret."""

Variables: TypeAlias = Mapping[str, Any]
"""A nested dictionary of arrays: ``{"params": ..., "batch_stats": ...}`` of one segment."""

ImageSize: TypeAlias = tuple[int, int]
"""Height, width, in pixels."""
