"""Drawn faces that need no files; every picture follows from the seed and its place alone."""

import functools
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray, ImageSize, RngKey
from facemix_jax.data.face_drawing import draw
from facemix_jax.data.face_model import ATTRIBUTE_NAMES, Face, sample_face, sample_person
from facemix_jax.data.source import SPLITS

TRAIN_EXAMPLES, VALID_EXAMPLES, TEST_EXAMPLES = 8192, 1024, 2048
"""Images of each split where nothing else is asked for."""

_CHUNK, _ROWS = 64, 1024
_KEEP_BYTES = 2**31


class Synthetic:
    """A ``Source`` of drawn faces; see ``load``. Its fields are those of the protocol."""

    name = "synthetic"
    attribute_names = ATTRIBUTE_NAMES

    def __init__(
        self,
        image_size: ImageSize,
        faces: Face,
        identities: HostArray,
        splits: Mapping[str, HostArray],
    ):
        self.image_size = image_size
        self.identities = identities
        self.splits = splits
        self.attributes: HostArray = np.asarray(faces.attributes).astype(np.int8)
        self._faces = faces
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="draw")
        self._kept: HostArray | None = None
        self._done = np.zeros(len(identities), bool)
        if len(identities) * image_size[0] * image_size[1] * 3 <= _KEEP_BYTES:
            # Memory is taken only as pictures are drawn; later epochs read instead of drawing.
            self._kept = np.empty((len(identities), *image_size, 3), np.uint8)

    def __len__(self) -> int:
        """``N``, the number of pictures."""
        return len(self.identities)

    def images(self, indices: HostArray) -> HostArray:
        """Pictures of ``indices`` (int ``[n]``), uint8 ``[n, H, W, 3]``, drawn at first use."""
        indices = np.arange(len(self))[indices]
        if self._kept is None:
            return self._draw(indices)
        with self._lock:
            missing = np.unique(indices[~self._done[indices]])
            if len(missing):
                self._kept[missing] = self._draw(missing)
                self._done[missing] = True
        return self._kept[indices]

    def _draw(self, indices: HostArray) -> HostArray:
        """Draws in chunks of one size, so that only one program is compiled."""
        padded = np.pad(indices, (0, -len(indices) % _CHUNK), mode="edge")
        chunks = padded.reshape(-1, _CHUNK)
        drawn = list(self._pool.map(self._draw_chunk, chunks))
        return np.concatenate([np.empty((0, *self.image_size, 3), np.uint8), *drawn])[
            : len(indices)
        ]

    def _draw_chunk(self, indices: HostArray) -> HostArray:
        faces = jax.tree.map(lambda leaf: leaf[indices], self._faces)
        faces, texture = jax.device_put((faces, _texture(self.image_size)), _cpu())
        return np.asarray(jax.device_get(_draw_faces(faces, texture, image_size=self.image_size)))


def load(
    image_size: ImageSize,
    *,
    train_examples: int | None = None,
    test_examples: int | None = None,
    seed: int = 0,
    images_per_person: int = 10,
) -> Synthetic:
    """Draws up people and pictures; the pictures themselves are drawn when asked for.

    People of different splits are different. The sizes of the splits do not change what the
    pictures in them look like.

    Args:
        image_size: height, width.
        train_examples: images of the training split; None for 8,192.
        test_examples: images of the test split; None for 2,048. Validation has as many, 1,024 at
            most.
        seed: of people and pictures, 0 to 2**32 - 1.
        images_per_person: pictures of each person; the last person of a split may have fewer.
    """
    _validate.in_range(0, 2**32 - 1, seed=seed)
    _validate.positive(images_per_person=images_per_person)
    test = TEST_EXAMPLES if test_examples is None else test_examples
    counts = (
        TRAIN_EXAMPLES if train_examples is None else train_examples,
        min(VALID_EXAMPLES, test),
        test,
    )
    split_of = np.repeat(np.arange(3, dtype=np.uint32), counts)
    within = np.concatenate([np.arange(count, dtype=np.uint32) for count in counts])
    person, picture = within // images_per_person, within % images_per_person
    faces = _sample_all(seed, (split_of << 28) | person, picture)
    people = [-(-count // images_per_person) for count in counts]
    offsets = np.cumsum([0, *people[:-1]])
    # Everybody's first picture, then everybody's second: neighbours are different people, as in
    # the official data sets, so that a group taken in order mixes different faces.
    rows = np.lexsort((person, picture)).astype(np.int64)
    return Synthetic(
        image_size=image_size,
        faces=faces,
        identities=(person + offsets[split_of]).astype(np.int32),
        splits={name: rows[split_of[rows] == i] for i, name in enumerate(SPLITS)},
    )


def _sample_all(seed: int, person: HostArray, picture: HostArray) -> Face:
    """The faces of all rows, on the host; in parts of one size, compiled once for any number."""
    padding = (0, -len(person) % _ROWS)
    person, picture = np.pad(person, padding), np.pad(picture, padding)
    with jax.default_device(_cpu()):
        rng_key = jax.random.key(seed)
        parts = [
            jax.device_get(_sample(rng_key, person[i : i + _ROWS], picture[i : i + _ROWS]))
            for i in range(0, len(person), _ROWS)
        ]
    rows = len(person) - padding[1]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:rows], *parts)


@jax.jit
def _sample(rng_key: RngKey, person: Array, picture: Array) -> Face:
    """The face of every row; keys are folded in by person and picture."""

    def one(who: Array, which: Array) -> Face:
        person_key = jax.random.fold_in(rng_key, who)
        return sample_face(jax.random.fold_in(person_key, which), sample_person(person_key))

    return jax.vmap(one)(person, picture)


@functools.partial(jax.jit, static_argnames="image_size")
def _draw_faces(faces: Face, texture: Array, *, image_size: ImageSize) -> Array:
    """One face after the other.

    A picture cannot depend on its neighbours, and planes of one stay in the cache of a core.
    """
    return jax.lax.map(lambda face: draw(face, image_size, texture), faces)


@functools.lru_cache(maxsize=4)
def _texture(image_size: ImageSize) -> HostArray:
    """Slightly smooth noise with unit standard deviation, the grain of skin, hair and cloth."""
    noise = np.random.default_rng(0).standard_normal((image_size[0] + 130, image_size[1] + 130))
    noise = noise[1:] + noise[:-1]
    noise = noise[:, 1:] + noise[:, :-1]
    return (noise / 2).astype(np.float32)


def _cpu() -> jax.Device:
    """Pictures are drawn on the host, so that an accelerator is left to the training step."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
