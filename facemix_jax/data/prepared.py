"""Reads prepared data sets: TFDS folders in the array_record format, without TensorFlow.

``facemix data prepare`` leaves two files beside the shards: ``labels.npz``, all labels at once,
and ``checksums.json``. A folder that TFDS wrote on its own has neither; its labels are then
gathered from the examples, which takes a minute or two for all of CelebA.
"""

import dataclasses
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax._validate import DataError
from facemix_jax.data.archives import EncodedImages
from facemix_jax.data.files import FileSet

LABELS, CHECKSUMS, INFO = "labels.npz", "checksums.json", "dataset_info.json"
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""Names of the splits in this package, and what TFDS calls them; in the order of examples."""

_T = TypeVar("_T")
_FEATURES = {"image", "attributes", "identity", "file_name"}
_REMEDY = "Remove the folder and prepare the data again, or fetch a good copy."


@dataclasses.dataclass(frozen=True)
class Labels:
    """All of a prepared data set but the images, in the order train, valid, test.

    Attributes:
        file_names: ``[N]`` names.
        attribute_names: ``[K]`` names.
        attributes: int8 ``[N, K]``, 0 or 1.
        identities: int32 ``[N]``.
        split_sizes: images of each split.
        sizes: int64 ``[N]``, bytes of each encoded image.
        crcs: uint32 ``[N]``, their CRC-32.
    """

    file_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    attributes: HostArray
    identities: HostArray
    split_sizes: Mapping[str, int]
    sizes: HostArray
    crcs: HostArray


@dataclasses.dataclass(frozen=True)
class _Shards:
    """Random access to the stored examples.

    Attributes:
        folder: of the data set.
        info: its description by TFDS.
        records: serialized examples of each split that there is.
        parse: a record as a dictionary, with the image encoded.
        parse_image: only its encoded image; six times faster with 40 attributes.
    """

    folder: Path
    info: Any
    records: Mapping[str, Sequence[bytes]]
    parse: Callable[[bytes], Any]
    parse_image: Callable[[bytes], bytes]

    @property
    def split_sizes(self) -> dict[str, int]:
        return {split: len(self.records.get(split, ())) for split in SPLITS}

    def image(self, split: str, index: int) -> bytes:
        return bytes(self.read(self.parse_image, split, index))

    def read(self, parse: Callable[[bytes], _T], split: str, index: int) -> _T:
        try:
            record = self.records[split][index]
            # What lies past the end of a truncated shard reads as nothing, without an error.
            if not record:
                raise ValueError("it is empty")
            return parse(record)
        # Damage surfaces in array_record, in the protobuf parser or in TFDS, each with its type.
        except Exception as error:
            raise DataError(
                f"{self.folder}: example {index} of {SPLITS[split]} cannot be read ({error}). "
                + _REMEDY
            ) from error


def read(data_dir: Path) -> FileSet:
    """Opens a prepared data set; images are read by random access, from any thread.

    Args:
        data_dir: what ``facemix data prepare`` or TFDS wrote: the folder of one version, or one
            above it that holds a single data set.

    Raises:
        DataError: no data set, several, another format, or damage.
    """
    folder = locate(data_dir)
    entries = checksums(folder)
    for name, (_, size) in entries.items():
        _check_size(folder / name, size)
    shards = _open(folder)
    if (folder / LABELS).exists():
        labels = _load_labels(folder, entries)
        _agree(labels, shards)
    else:
        labels = _gather(shards)
    starts = np.cumsum([0, *(labels.split_sizes[split] for split in SPLITS)])
    rows = {name: i for i, name in enumerate(labels.file_names)}
    if len(rows) != len(labels.file_names):
        raise DataError(f"{folder}: a file name occurs twice. {_REMEDY}")

    def image(name: str) -> bytes:
        row = rows[name]
        at = int(np.searchsorted(starts, row, side="right")) - 1
        data = shards.image(list(SPLITS)[at], row - int(starts[at]))
        if len(data) != labels.sizes[row] or zlib.crc32(data) != labels.crcs[row]:
            raise DataError(f"{folder}: image {name} is not the one that was stored. {_REMEDY}")
        return data

    return FileSet(
        # The name becomes a part of file names.
        name=re.sub("[^A-Za-z0-9_-]", "_", shards.info.name),
        file_names=labels.file_names,
        images=EncodedImages(
            label=str(folder),
            sizes=dict(zip(labels.file_names, labels.sizes.tolist(), strict=True)),
            stamps={
                name: f"{size} {crc:08x}"
                for name, size, crc in zip(
                    labels.file_names, labels.sizes.tolist(), labels.crcs.tolist(), strict=True
                )
            },
            read=image,
        ),
        attribute_names=labels.attribute_names,
        attributes=labels.attributes,
        identities=labels.identities,
        splits={
            split: np.arange(starts[i], starts[i + 1], dtype=np.int64)
            for i, split in enumerate(SPLITS)
        },
    )


def locate(data_dir: Path) -> Path:
    """The folder of the one prepared version at or below ``data_dir``.

    Raises:
        DataError: there is none, or more than one.
    """
    if (data_dir / INFO).is_file():
        return data_dir
    found = sorted(_versions(data_dir))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{data_dir} holds no prepared data set: no {INFO} there or up to three folders below. "
            "Make one with facemix data prepare."
        )
    names = ", ".join(p.relative_to(data_dir).as_posix() for p in found[:4])
    raise DataError(
        f"{data_dir} holds {len(found)} prepared data sets ({names}). Give the folder of one."
    )


def checksums(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and bytes of each file as prepared; empty where none were recorded.

    Raises:
        DataError: the file of checksums is damaged.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text())["files"]
        result = {str(n): (str(e["sha256"]), int(e["bytes"])) for n, e in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error!r}). {_REMEDY}") from error
    for name in result:
        if Path(name).name != name:
            raise DataError(f"{path} names a file outside its folder: {name!r}. {_REMEDY}")
    return result


def save_labels(path: Path, labels: Labels) -> None:
    """Writes ``labels`` for ``read``."""
    np.savez_compressed(
        path,
        file_names=_packed(labels.file_names),
        attribute_names=_packed(labels.attribute_names),
        attributes=labels.attributes,
        identities=labels.identities,
        split_sizes=np.array([labels.split_sizes[s] for s in SPLITS], np.int64),
        sizes=labels.sizes,
        crcs=labels.crcs,
    )


def _packed(names: tuple[str, ...]) -> HostArray:
    """Names as one JSON text: unlike an array of strings, it takes no more room than they do."""
    return np.array(json.dumps(names).encode())


def _load_labels(folder: Path, entries: Mapping[str, tuple[str, int]]) -> Labels:
    path = folder / LABELS
    try:
        data = path.read_bytes()
        if LABELS in entries and hashlib.sha256(data).hexdigest() != entries[LABELS][0]:
            raise ValueError("its checksum differs")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            labels = Labels(
                file_names=tuple(json.loads(file["file_names"].item())),
                attribute_names=tuple(json.loads(file["attribute_names"].item())),
                attributes=file["attributes"],
                identities=file["identities"],
                split_sizes=dict(zip(SPLITS, file["split_sizes"].tolist(), strict=True)),
                sizes=file["sizes"],
                crcs=file["crcs"],
            )
    # A damaged zip or array raises whatever its parser stumbles over.
    except Exception as error:
        raise DataError(f"{path} is damaged ({error}). {_REMEDY}") from error
    count, names = len(labels.file_names), len(labels.attribute_names)
    expected = {
        "attributes": ((count, names), np.int8),
        "identities": ((count,), np.int32),
        "sizes": ((count,), np.int64),
        "crcs": ((count,), np.uint32),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(labels, name)
        if array.shape != shape or array.dtype != dtype:
            raise DataError(
                f"{path}: {name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}. "
                + _REMEDY
            )
    return labels


def _agree(labels: Labels, shards: _Shards) -> None:
    """Raises ``DataError`` where the labels are not those of the shards."""
    stored = shards.split_sizes
    if dict(labels.split_sizes) != stored or len(labels.file_names) != sum(stored.values()):
        raise DataError(
            f"{shards.folder}: {LABELS} and the shards count different images. {_REMEDY}"
        )
    if sorted(labels.attribute_names) != sorted(shards.info.features["attributes"]):
        raise DataError(
            f"{shards.folder}: {LABELS} and the shards name other attributes. {_REMEDY}"
        )


def _open(folder: Path) -> _Shards:
    # Imported here, as it takes a second.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
    # What TFDS raises depends on which of its files is damaged.
    except Exception as error:
        raise DataError(f"{folder} is not a TFDS data set ({error}). {_REMEDY}") from error
    kind = builder.info.file_format
    if kind is None or kind.value != "array_record":
        raise DataError(
            f"{folder} is stored as {kind and kind.value}, which needs TensorFlow. Prepare it "
            "again with file_format='array_record'."
        )
    missing = _FEATURES - set(builder.info.features or ())
    if missing:
        raise DataError(
            f"{folder} has no feature {', '.join(sorted(missing))}: it is not a data set of "
            "labelled faces as facemix_jax.data.builders write it. Give another folder."
        )
    skip = {"image": tfds.decode.SkipDecoding()}
    image = tfds.features.FeaturesDict({"image": builder.info.features["image"]})
    return _Shards(
        folder=folder,
        info=builder.info,
        records={
            split: builder.as_data_source(
                name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
            for split, name in SPLITS.items()
            if name in builder.info.splits
        },
        parse=lambda record: builder.info.features.deserialize_example_np(record, decoders=skip),
        parse_image=lambda record: image.deserialize_example_np(record, decoders=skip)["image"],
    )


def _gather(shards: _Shards) -> Labels:
    """Reads every example for its labels."""
    stored = shards.info.features["attributes"]
    names = tuple((shards.info.metadata or {}).get("attribute_names", stored))
    if sorted(names) != sorted(stored):
        names = tuple(stored)

    def row(record: bytes) -> tuple[str, list[bool], int, int, int]:
        example = shards.parse(record)
        return (
            example["file_name"].decode(),
            [bool(example["attributes"][name]) for name in names],
            int(example["identity"]),
            len(example["image"]),
            zlib.crc32(example["image"]),
        )

    rows = [
        shards.read(row, split, i)
        for split, size in shards.split_sizes.items()
        for i in range(size)
    ]
    if not rows:
        raise DataError(f"{shards.folder} holds no images. {_REMEDY}")
    file_names, attributes, identities, sizes, crcs = zip(*rows, strict=True)
    return Labels(
        file_names=file_names,
        attribute_names=names,
        attributes=np.array(attributes, np.int8).reshape(len(rows), len(names)),
        identities=np.array(identities, np.int32),
        split_sizes=shards.split_sizes,
        sizes=np.array(sizes, np.int64),
        crcs=np.array(crcs, np.uint32),
    )


def _check_size(path: Path, size: int) -> None:
    actual = path.stat().st_size if path.is_file() else None
    if actual is None:
        raise DataError(f"{path} is missing. {_REMEDY}")
    if actual != size:
        raise DataError(f"{path} has {actual:,} bytes, but {size:,} were written. {_REMEDY}")


def _versions(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Folders with a finished data set, at most ``depth`` levels down."""
    try:
        below = [p for p in folder.iterdir() if p.is_dir()]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}. Check the path.") from error
    for path in below:
        # Hidden folders and those named ``incomplete`` are half-written.
        if path.name.startswith((".", "incomplete")):
            continue
        if (path / INFO).is_file():
            yield path
        elif depth > 1:
            yield from _versions(path, depth - 1)
