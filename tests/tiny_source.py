"""A data set without files, in an instant."""

import numpy as np


class TinySource:
    """Random pictures whose first attribute is their brightness: learnable, and no files."""

    name = "tiny"
    image_size = (40, 36)
    attribute_names = ("Bright", "Even", "Coin")

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        bright = rng.integers(0, 2, 192)
        noise = rng.integers(0, 120, (192, *self.image_size, 3))
        self._images = (noise + 120 * bright[:, None, None, None]).astype(np.uint8)
        coin = rng.integers(0, 2, 192)
        self.attributes = np.stack([bright, np.arange(192) % 2, coin], 1).astype(np.int8)
        self.identities = np.arange(192, dtype=np.int32)
        self.splits = {"train": np.arange(128), "test": np.arange(128, 192)}

    def __len__(self) -> int:
        return 192

    def images(self, indices):
        return self._images[indices]
