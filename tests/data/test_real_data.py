"""Every label and every image of the real files, against readers written apart."""

import csv
import zipfile

import numpy as np
import plain_readers
import pytest

from facemix_jax.data import DataConfig, load_source

SIZE = (109, 89)
SETS = {
    "celeba": ("celeba", 20_000, "img_align_celeba.zip"),
    "lfwa": ("lfwa", 13_143, "images.zip"),
    "celeba_identity": ("folder", 6_025, "images.zip"),
}


def plain_table(folder):
    """Rows with a value under ``Male``; the 40 attributes end with ``Young``."""
    with (folder / "labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    first, last = header.index("5_o_Clock_Shadow"), header.index("Young")
    split = header.index("split" if "split" in header else "partition")
    rows = [row for row in rows if row[first]]
    return plain_readers.Plain(
        [row[0] for row in rows],
        header[first : last + 1],
        [[{"0": 0, "1": 1}[v] for v in row[first : last + 1]] for row in rows],
        [row[1] for row in rows],
        [plain_readers.SPLITS[row[split]] for row in rows],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_label_and_image(real_data, tmp_path, name):
    dataset, count, archive = SETS[name]
    folder = real_data / name
    if not folder.is_dir():
        pytest.skip(f"no {name}")
    config = DataConfig(
        dataset=dataset, data_dir=str(folder), image_size=SIZE, cache_dir=str(tmp_path)
    )
    source = load_source(config)  # Decodes every image.
    plain = plain_readers.celeba(folder) if dataset == "celeba" else plain_table(folder)
    assert len(source) == count
    assert len(plain.attribute_names) == 40
    plain_readers.compare(source, plain)
    assert sum(map(len, source.splits.values())) == count
    rows = np.sort(np.random.default_rng(0).permutation(count)[:200])
    images = source.images(rows)
    with zipfile.ZipFile(folder / archive) as stored:
        members = {member.rsplit("/", 1)[-1]: member for member in stored.namelist()}
        for row, image in zip(rows, images, strict=True):
            data = stored.read(members[plain.names[row]])
            np.testing.assert_array_equal(image, plain_readers.pixels(data, SIZE))
    # Control: the comparison notices one wrong label.
    plain.attributes[count // 2][7] ^= 1
    with pytest.raises(AssertionError):
        plain_readers.compare(source, plain)
