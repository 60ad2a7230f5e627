"""CelebA, LFWA and any labelled folder as TFDS data sets, without TensorFlow.

Importing this module imports ``tensorflow_datasets``, which takes a second; nothing else in the
package imports it at load time. On its own, with the official files in ``manual_dir``::

    builder = Celeba(data_dir="~/tensorflow_datasets", file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir="~/downloads/celeba")
    )
    train = builder.as_data_source("train")
"""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from facemix_jax._types import ImageSize
from facemix_jax._validate import DataError
from facemix_jax.data import DataConfig, celeba, decode, open_files
from facemix_jax.data.archives import EncodedImages
from facemix_jax.data.face_model import ATTRIBUTE_NAMES
from facemix_jax.data.files import FileSet
from facemix_jax.data.prepared import SPLITS

JPEG_QUALITY = 95
"""Of resized images; their colours are stored at full resolution (4:4:4)."""

_CITATION = """\
@inproceedings{liu2015faceattributes,
  title = {Deep Learning Face Attributes in the Wild},
  author = {Liu, Ziwei and Luo, Ping and Wang, Xiaogang and Tang, Xiaoou},
  booktitle = {Proceedings of International Conference on Computer Vision (ICCV)},
  year = {2015}
}"""
_LFW_CITATION = """\
@techreport{huang2007lfw,
  title = {Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained
           Environments},
  author = {Huang, Gary B. and Ramesh, Manu and Berg, Tamara and Learned-Miller, Erik},
  institution = {University of Massachusetts, Amherst},
  number = {07-49},
  year = {2007}
}"""


@dataclasses.dataclass(eq=False, kw_only=True)
class FaceConfig(tfds.core.BuilderConfig):
    """How the images are stored.

    Attributes:
        image_size: height, width to resize to (antialiased, JPEG); None keeps the original bytes.
        attribute_names: attributes to store; None for the 40 of CelebA.
        labels: CSV file of labels, for ``Lfwa`` and ``FaceFolder``; None to find it.
        columns: roles of its columns; None to guess them.
    """

    image_size: ImageSize | None = None
    attribute_names: tuple[str, ...] | None = None
    labels: str | None = None
    columns: str | None = None


def resized_jpeg(data: bytes, image_size: ImageSize, *, name: str) -> bytes:
    """Decodes an image, resizes it and encodes it as JPEG.

    Args:
        data: the encoded file.
        image_size: height, width of the result.
        name: of the file, for errors.

    Raises:
        DataError: the image cannot be decoded.
    """
    from PIL import Image

    out = io.BytesIO()
    picture = Image.fromarray(decode.rgb(data, image_size, name=name))
    picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


class FaceBuilder(  # type: ignore[call-arg]  # TFDS has no type information
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """What the face data sets share: features, splits and examples.

    An example holds ``image`` (encoded), ``attributes`` (bool by name), ``identity`` (int32;
    equal numbers are the same person) and ``file_name``. Examples keep the order of the label
    files; shuffle when reading.
    """

    DATASET = ""
    """Name in ``DataConfig``."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[FaceConfig]] = []
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    DESCRIPTION = ""
    CITATION = _CITATION
    HOMEPAGE: str | None = None
    LICENSE: str | None = None
    _files: FileSet | None = None
    _stored: EncodedImages | None = None

    @classmethod
    def config_for(
        cls, image_size: ImageSize | None, attribute_names: tuple[str, ...]
    ) -> FaceConfig:
        """The configuration of a size and attributes, among ``BUILDER_CONFIGS`` or a new one.

        It is named ``native`` or for example ``109x89`` (height, width). With attributes other
        than the 40, their number follows, as such data have other features.
        """
        name = "native" if image_size is None else f"{image_size[0]}x{image_size[1]}"
        if cls.BUILDER_CONFIGS and attribute_names != ATTRIBUTE_NAMES:
            name = f"{name}-{len(attribute_names)}_attributes"
        for config in cls.BUILDER_CONFIGS:
            if config.name == name:
                return config
        return FaceConfig(name=name, image_size=image_size, attribute_names=attribute_names)

    def use(self, files: FileSet, stored: EncodedImages) -> None:
        """Takes checked files and the bytes to store, instead of reading ``manual_dir``."""
        self._files, self._stored = files, stored

    def _names(self) -> tuple[str, ...]:
        names = self.builder_config.attribute_names
        return ATTRIBUTE_NAMES if names is None else tuple(names)

    def _info(self) -> tfds.core.DatasetInfo:
        size, names = self.builder_config.image_size, self._names()
        shape = (None, None, 3) if size is None else (*size, 3)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape, encoding_format="jpeg"),
                    "attributes": {name: np.bool_ for name in names},
                    "identity": np.int32,
                    "file_name": tfds.features.Text(),
                }
            ),
            # A features dictionary is sorted when it is stored; this keeps the order.
            metadata=tfds.core.MetadataDict(attribute_names=list(names)),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=self.LICENSE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
        files = self._files
        if files is None:
            settings = self.builder_config
            files = open_files(
                DataConfig(
                    dataset=self.DATASET,
                    data_dir=str(dl_manager.manual_dir),
                    labels=settings.labels,
                    columns=settings.columns,
                )
            )
        unknown = [n for n in self._names() if n not in files.attribute_names]
        if unknown:
            raise DataError(
                f"The labels have no attribute {', '.join(unknown[:3])}"
                f"{', ...' * (len(unknown) > 3)}; there is {', '.join(files.attribute_names)}. "
                "Set attribute_names of the FaceConfig to some of these."
            )
        return {
            SPLITS[split]: self._generate_examples(files, rows)
            for split, rows in files.splits.items()
            if len(rows)
        }

    def _generate_examples(self, files: FileSet, rows: Any) -> Iterator[tuple[str, Any]]:
        names = self._names()
        columns = [files.attribute_names.index(name) for name in names]
        for row in rows:
            file_name = files.file_names[row]
            yield (
                file_name,
                {
                    # Bytes would be taken for a path.
                    "image": io.BytesIO(self._image(files, file_name)),
                    "attributes": {
                        name: bool(files.attributes[row, k])
                        for name, k in zip(names, columns, strict=True)
                    },
                    "identity": files.identities[row],
                    "file_name": file_name,
                },
            )

    def _image(self, files: FileSet, name: str) -> bytes:
        if self._stored is not None:
            return self._stored.read(name)
        data, size = files.images.read(name), self.builder_config.image_size
        if size is None:
            return data
        return resized_jpeg(data, size, name=files.images.where(name))


class Celeba(FaceBuilder):
    """CelebA: aligned faces of celebrities, 40 attributes, identities."""

    DATASET = "celeba"
    BUILDER_CONFIGS: ClassVar[list[FaceConfig]] = [
        FaceConfig(name="native", description="The official JPEG files, 218 x 178."),
        FaceConfig(
            name="109x89", image_size=(109, 89), description="Half the size, as in FaceMix."
        ),
    ]
    DESCRIPTION = (
        "202,599 faces of 10,177 celebrities, aligned, with 40 binary attributes, in the official "
        "partition, which separates people."
    )
    HOMEPAGE = celeba.HOME
    LICENSE = "Non-commercial research only; no redistribution (see the home page)."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Agree to the terms at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and put "
        "img_align_celeba.zip (or the unpacked folder), list_attr_celeba.txt, "
        "identity_CelebA.txt and list_eval_partition.txt into manual_dir."
    )


class Lfwa(FaceBuilder):
    """LFWA: Labeled Faces in the Wild with the 40 attributes of CelebA."""

    DATASET = "lfwa"
    BUILDER_CONFIGS: ClassVar[list[FaceConfig]] = [
        FaceConfig(name="native", description="The files as they are."),
        FaceConfig(name="109x89", image_size=(109, 89), description="As in FaceMix."),
    ]
    DESCRIPTION = "Faces of Labeled Faces in the Wild with the 40 binary attributes of CelebA."
    CITATION = f"{_CITATION}\n{_LFW_CITATION}"
    HOMEPAGE = celeba.HOME
    LICENSE = "Non-commercial research only (see the home page)."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Agree to the terms at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (section LFWA) "
        "and put the images and lfw_att_40.mat, or the images and a CSV file of labels, into "
        "manual_dir."
    )


class FaceFolder(FaceBuilder):
    """Any images with a CSV file of labels.

    Give ``config=FaceConfig(name=..., attribute_names=(...))``: which attributes there are must
    be known before the file is read.
    """

    DATASET = "folder"
    DESCRIPTION = "Images with a CSV file of labels."
    CITATION = ""
    LICENSE = "That of the images."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the images (a folder or a zip file) and a CSV file with a row for each into "
        "manual_dir."
    )


BUILDERS: dict[str, type[FaceBuilder]] = {
    builder.DATASET: builder for builder in (Celeba, Lfwa, FaceFolder)
}
"""Builder of each data set of ``DataConfig``."""
