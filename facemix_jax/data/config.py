"""Which images a run uses."""

import dataclasses

from facemix_jax import _validate
from facemix_jax._validate import UsageError

FILES = ("celeba", "lfwa", "folder", "prepared")
"""Data sets that are read from files."""

DATASETS = ("synthetic", *FILES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how many of them.

    Attributes:
        dataset: ``synthetic`` (drawn, no files), ``celeba`` (the official files), ``lfwa`` (the
            official files, or images with a CSV), ``folder`` (any images with a CSV) or
            ``prepared`` (what ``facemix data prepare`` wrote).
        data_dir: folder with the files; for all but ``synthetic``.
        labels: the CSV file in ``data_dir``; None for the only one. For ``folder`` and ``lfwa``.
        columns: what the CSV's columns hold, as in ``identity=person split=partition
            ignore=source attributes=Smiling,Male``; the rest is guessed.
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
    labels: str | None = None
    columns: str | None = None
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
        for name in ("labels", "columns"):
            if getattr(self, name) is not None and self.dataset not in ("folder", "lfwa"):
                raise UsageError(
                    f"{name} is for CSV files, which dataset {self.dataset!r} does not have. "
                    f"Leave {name} out, or use dataset 'folder' or 'lfwa'."
                )
        _validate.pair(image_size=self.image_size)
        height, width = self.image_size
        _validate.in_range(16, 1024, image_height=height, image_width=width)
        for name in ("train_examples", "test_examples"):
            if getattr(self, name) is not None:
                _validate.positive(**{name: getattr(self, name)})
