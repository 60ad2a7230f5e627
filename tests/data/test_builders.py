"""The TFDS builders on their own, as a user of TFDS meets them, and without TensorFlow."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from layouts import noisy_jpeg, write_celeba
from PIL import Image

from facemix_jax._validate import DataError
from facemix_jax.data import builders, celeba, folder, lfwa, prepared
from facemix_jax.data.face_model import ATTRIBUTE_NAMES

COUNT = 9
SKIP = {"image": tfds.decode.SkipDecoding()}


@pytest.fixture
def official(tmp_path):
    """CelebA's own layout with all 40 attributes, 9 images, splits interleaved."""
    return write_celeba(tmp_path / "manual", ATTRIBUTE_NAMES, [i % 3 for i in range(COUNT)])


def build(builder_class, manual_dir, data_dir, **options):
    builder = builder_class(data_dir=str(data_dir), file_format="array_record", **options)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    )
    return builder


def assert_examples_equal(builder, files):
    """Every label of every split, in order, and every byte."""
    for split, stored in prepared.SPLITS.items():
        source = builder.as_data_source(stored, decoders=SKIP)
        assert len(source) == len(files.splits[split])
        for example, row in zip(source, files.splits[split], strict=True):
            assert example["file_name"].decode() == files.file_names[row]
            assert example["identity"] == files.identities[row]
            labels = [example["attributes"][name] for name in files.attribute_names]
            assert labels == files.attributes[row].astype(bool).tolist()
            assert set(example["attributes"]) == set(files.attribute_names)
            assert example["image"] == files.images.read(files.file_names[row])


def test_celeba_as_a_tfds_user_builds_it(official, tmp_path):
    builder = build(builders.Celeba, official, tmp_path / "out")
    files = celeba.read(official)
    assert_examples_equal(builder, files)
    assert builder.info.full_name == "celeba/native/1.0.0"
    assert builder.info.features["attributes"]["Male"].np_dtype == np.bool_
    assert builder.info.features["identity"].np_dtype == np.int32
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {
        "train": 3,
        "validation": 3,
        "test": 3,
    }
    # What TFDS finds in the folder alone is the same.
    found = tfds.builder_from_directory(str(builder.data_dir))
    assert_examples_equal(found, files)
    assert found.info.metadata["attribute_names"] == list(files.attribute_names)
    # Control: one wrong label does not pass.
    files.attributes[4, 20] ^= 1
    with pytest.raises(AssertionError):
        assert_examples_equal(builder, files)


def test_resizing_configuration(official, tmp_path):
    builder = build(builders.Celeba, official, tmp_path / "out", config="109x89")
    files = celeba.read(official)
    source = builder.as_data_source("test")
    assert builder.info.features["image"].shape == (109, 89, 3)
    for example, row in zip(source, files.splits["test"], strict=True):
        with Image.open(io.BytesIO(files.images.read(files.file_names[row]))) as image:
            direct = np.asarray(image.resize((89, 109), Image.Resampling.BICUBIC))
        assert example["image"].shape == (109, 89, 3)
        assert np.abs(example["image"].astype(int) - direct).mean() < 3


def test_what_the_builders_say():
    for builder_class in builders.BUILDERS.values():
        assert str(builder_class.VERSION) in builder_class.RELEASE_NOTES
        assert "manual_dir" in builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
        assert builder_class.LICENSE
    for builder_class in (builders.Celeba, builders.Lfwa):
        assert "liu2015faceattributes" in builder_class.CITATION
        assert "on-commercial" in builder_class.LICENSE
        assert builder_class.HOMEPAGE.startswith("https://")
    assert len(set(ATTRIBUTE_NAMES)) == 40


@pytest.fixture
def csv_folder(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    rng = np.random.default_rng(1)
    lines = ["file,person,split,Smiling,Hat"]
    with zipfile.ZipFile(path / "images.zip", "w") as archive:
        for i in range(COUNT):
            archive.writestr(f"p{i}.jpg", noisy_jpeg(rng, (30, 40)))
            split = ("train", "val", "test")[i % 3]
            lines.append(f"p{i}.jpg,name{i // 2},{split},{i % 2},{(i // 2) % 2}")
    (path / "labels.csv").write_text("\n".join(lines) + "\n")
    return path


def test_folder_with_a_csv(csv_folder, tmp_path):
    config = builders.FaceConfig(name="mine", attribute_names=("Smiling", "Hat"))
    builder = build(builders.FaceFolder, csv_folder, tmp_path / "out", config=config)
    files = folder.read(csv_folder)
    assert_examples_equal(builder, files)
    np.testing.assert_array_equal(
        prepared.read(tmp_path / "out").attributes,
        files.attributes[np.concatenate([files.splits[s] for s in prepared.SPLITS])],
    )


def test_attributes_must_exist(csv_folder, official, tmp_path):
    config = builders.FaceConfig(name="mine", attribute_names=("Smiling", "Wings"))
    with pytest.raises(DataError, match="no attribute Wings; there is Smiling, Hat"):
        build(builders.FaceFolder, csv_folder, tmp_path / "out", config=config)
    # A part of them is fine.
    config = builders.FaceConfig(name="two", attribute_names=("Young", "Male"))
    builder = build(builders.Celeba, official, tmp_path / "out", config=config)
    assert set(builder.as_data_source("train")[0]["attributes"]) == {"Male", "Young"}
    assert prepared.read(tmp_path / "out").attribute_names == ("Young", "Male")


def test_damage_in_the_official_files_is_a_data_error(official, tmp_path):
    (official / celeba.IDENTITIES).unlink()
    with pytest.raises(DataError, match=celeba.IDENTITIES):
        build(builders.Celeba, official, tmp_path / "out")
    with pytest.raises(DataError, match="no prepared data set"):
        prepared.read(tmp_path / "out")


@pytest.mark.slow
def test_real_lfwa(real_data, tmp_path):
    files = lfwa.read(real_data / "lfwa")
    assert_examples_equal(build(builders.Lfwa, real_data / "lfwa", tmp_path), files)


WITHOUT_TENSORFLOW = """
import importlib.util, sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        hidden = name.split(".")[0] == "tensorflow"
        return None if hidden else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
assert importlib.util.find_spec("tensorflow") is None
assert importlib.util.find_spec("numpy") is not None

import facemix_jax.data
assert "tensorflow_datasets" not in sys.modules, "slow import"

from pathlib import Path
from facemix_jax.data import DataConfig, celeba, load_source, prepare, prepared
import numpy as np

manual, out = sys.argv[1:]
config = DataConfig(dataset="celeba", data_dir=manual)
for size in ((109, 89), None):
    path = prepare.prepare(config, Path(out), store_size=size, show_progress=False)
    assert prepare.verify(path) == []
official, found = celeba.read(Path(manual)), prepared.read(path)
rows = [official.file_names.index(name) for name in found.file_names]
assert sorted(rows) == list(range(len(official.file_names)))
assert np.array_equal(found.attributes, official.attributes[rows])
assert np.array_equal(found.identities, official.identities[rows])
assert all(found.images.read(n) == official.images.read(n) for n in found.file_names)

import tensorflow_datasets as tfds
from facemix_jax.data import builders
builder = builders.Celeba(data_dir=out + "/user", file_format="array_record")
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual)
)
assert builder.as_data_source("train")[0]["image"].shape == (218, 178, 3)
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
try:
    import tensorflow
except ImportError:
    print("absent")
"""


def test_everything_works_without_tensorflow(official, tmp_path):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TENSORFLOW]
    command += [str(official), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("absent\n")
