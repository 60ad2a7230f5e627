"""Which images a run uses."""

import dataclasses

from facemix_jax import _validate
from facemix_jax._validate import UsageError

FILES = ("celeba",)
"""Data sets that are read from files."""

DATASETS = ("synthetic", *FILES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how many of them.

    Attributes:
        dataset: ``synthetic`` (drawn, no files) or ``celeba`` (the official files).
        data_dir: folder with the official files; for ``celeba``.
        image_size: height, width; images are resized, antialiased, where theirs differs.
        train_examples: images of the training split; None for all (``synthetic``: 8,192).
        test_examples: images of the test split; None for all (``synthetic``: 2,048).
        cache_dir: folder for decoded images; None for ``.facemix_cache`` in ``data_dir``, or
            the user's cache folder where that cannot be written.
        distinct_people: whether training groups show different people only.
        device_resident: whether the training split is copied to the accelerator, so that no step
            waits for the host; for data that fits there.
    """

    dataset: str = "synthetic"
    data_dir: str | None = None
    image_size: tuple[int, int] = (109, 89)
    train_examples: int | None = None
    test_examples: int | None = None
    cache_dir: str | None = None
    distinct_people: bool = False
    device_resident: bool = False

    def __post_init__(self) -> None:
        """Raises ``UsageError`` where values make no sense."""
        _validate.one_of(DATASETS, dataset=self.dataset)
        if self.dataset in FILES and self.data_dir is None:
            raise UsageError(
                f"dataset {self.dataset!r} needs data_dir, the folder with its files. Give "
                "data_dir, or use dataset 'synthetic', which needs no files."
            )
        if self.dataset == "synthetic" and self.data_dir is not None:
            raise UsageError(
                f"dataset 'synthetic' reads no files, but data_dir is {self.data_dir!r}. "
                "Did you mean dataset 'celeba'?"
            )
        if len(self.image_size) != 2:
            raise UsageError(
                f"image_size is {self.image_size}, but must be two numbers: height, width."
            )
        height, width = self.image_size
        _validate.in_range(16, 1024, image_height=height, image_width=width)
        for name in ("train_examples", "test_examples"):
            if getattr(self, name) is not None:
                _validate.positive(**{name: getattr(self, name)})
