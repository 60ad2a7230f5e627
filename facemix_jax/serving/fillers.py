"""Pictures that complete a group: drawn from the user's secret, shown to nobody.

A group of fewer than ``M`` pictures has to be completed, and what completes it decides what the
cloud can compute without any attack on the mixing itself:

- Zeros, or copies of a picture of the group, lower the rank: the ``M`` mixtures span fewer than
  ``M`` directions, and a picture mixed with nothing but itself is sent as it is, scaled.
- Pictures of another group of the request stand in two groups. The spans of two groups meet in
  exactly the pictures that they share, so one shared picture is recovered by linear algebra.
- Pictures that the cloud knows (a published set, a fixed seed) are subtracted by projecting the
  span onto what is orthogonal to them; what remains is the face.
- Fresh pictures each time meet the same fate as shared ones: two requests with one face and
  different company have that face alone in common. A retry is such a request.

So fillers follow from the root secret and the group's own pictures, in whatever order: unknown to
the cloud, in no other group, and the same whenever the same incomplete group is sent again. They
are leaves of random colours and sizes over each other, whose edges are as sparse as those of
photographs, with the contrast of a drawn face. Sending one picture with *different other pictures
of yours* in two requests still gives it away to a cloud that keeps both; no filler can change that.
So does an incomplete group that is sent again under another root secret.
"""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from facemix_jax._types import HostArray, ImageSize
from facemix_jax.keys import RootSecret

_LEAVES = 60
_CONTRAST = 0.75
"""As much as drawn faces have. Full contrast costs accuracy, as networks are trained on faces;
little contrast would let the one real face show through every mixture."""


def fillers(root: RootSecret, images: HostArray, count: int) -> HostArray:
    """Pictures that complete a group.

    Args:
        root: the user's secret.
        images: uint8 ``[n, H, W, 3]``, the pictures of the incomplete group.
        count: how many are missing.

    Returns:
        uint8 ``[count, H, W, 3]``; the same for the same secret and pictures, in any order.
    """
    # Sorted, as mixtures of the same pictures in another order span the same; a list, as two of one
    # picture are another group than one.
    content = b"".join(sorted(hashlib.sha256(image.tobytes()).digest() for image in images))
    content = hashlib.sha256(content).digest()
    shape = count, 3 + 5 * _LEAVES
    numbers = _uniform(root.derive(b"filler", salt=content), shape[0] * shape[1]).reshape(shape)
    size = images.shape[1], images.shape[2]
    drawn = [_leaves(of_one, size) for of_one in numbers]
    return np.stack(drawn) if drawn else np.empty((0, *size, 3), np.uint8)


def _uniform(key: bytes, count: int) -> HostArray:
    """float64 ``[count]`` in [0, 1) from ChaCha20; the nonce is fixed, as a key is used once."""
    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * count)), "<u4") / 2.0**32


def _leaves(numbers: HostArray, size: ImageSize) -> HostArray:
    """One picture: discs, large ones behind, in colours around a middle grey."""
    height, width = size
    colours = 128 + _CONTRAST * (256 * numbers[: 3 * (_LEAVES + 1)].reshape(-1, 3) - 128)
    centres = numbers[3 * (_LEAVES + 1) :].reshape(_LEAVES, 2) * size
    picture = np.full((height, width, 3), colours[0], np.float32)
    for radius, (y, x), colour in zip(
        np.geomspace(height / 2, height / 32, _LEAVES), centres, colours[1:], strict=True
    ):
        top, left = max(int(y - radius), 0), max(int(x - radius), 0)
        window = picture[top : int(y + radius) + 1, left : int(x + radius) + 1]
        rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
        window[(rows + top - y) ** 2 + (columns + left - x) ** 2 < radius**2] = colour
    return picture.astype(np.uint8)
