"""Batches: repeatable by seed and step, complete, without repetition; and normalisation."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import (
    DataConfig,
    denormalize,
    eval_batches,
    load_source,
    normalize,
    on_device,
    train_batches,
)


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A source whose images show their own index; the training rows are not contiguous."""

    name: str = "numbered"
    image_size: tuple[int, int] = (4, 3)
    attribute_names: tuple[str, ...] = ("Odd", "Large")
    broken: bool = False
    calls: list = dataclasses.field(default_factory=list)

    @property
    def attributes(self):
        rows = np.arange(len(self))
        return np.stack([rows % 2, rows > 30], axis=1).astype(np.int8)

    @property
    def identities(self):
        return (np.arange(len(self)) // 2).astype(np.int32)

    @property
    def splits(self):
        rows = np.arange(len(self), dtype=np.int64)
        return {"train": rows[::2], "valid": rows[:0], "test": rows[1::6]}

    def __len__(self):
        return 46

    def images(self, indices):
        if self.broken:
            raise DataError("image x is damaged")
        self.calls.append(len(indices))
        return np.broadcast_to(
            indices.astype(np.uint8)[:, None, None, None], (len(indices), 4, 3, 3)
        )


def rows_of(batch):
    return batch.images[:, 0, 0, 0].astype(int)


def first(count, source=None, **options):
    options = {"batch_size": 5, "seed": 3} | options
    return list(itertools.islice(train_batches(source or Numbered(), **options), count))


def test_batches_hold_what_belongs_together():
    source = Numbered()
    for batch in first(6, source):
        rows = rows_of(batch)
        assert set(rows) <= set(source.splits["train"])
        np.testing.assert_array_equal(batch.attributes, source.attributes[rows])
        np.testing.assert_array_equal(batch.identities, source.identities[rows])
        assert batch.mask.all()
        assert batch.images.shape == (5, 4, 3, 3)
    assert set(source.calls) == {5}, "one call per batch"


def test_epochs_differ_and_never_repeat_an_image():
    # 23 training images: 4 batches of 5 an epoch, 3 images left out.
    rows = np.stack([rows_of(b) for b in first(40)])
    epochs = rows.reshape(10, 20)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
    assert len({tuple(e) for e in epochs.tolist()}) == 10
    left_out = [frozenset(range(0, 46, 2)) - set(e) for e in epochs.tolist()]
    assert len(set(left_out)) > 1, "every image gets its turn"
    assert set(rows.ravel().tolist()) == set(range(0, 46, 2))


@pytest.mark.parametrize("start", [1, 4, 7, 23])
def test_start_step_resumes_exactly(start):
    whole = first(30)
    resumed = first(30 - start, start_step=start)
    for a, b in zip(whole[start:], resumed, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
    # Control: one step off is another sequence.
    assert not np.array_equal(rows_of(whole[start - 1]), rows_of(resumed[0]))


def test_order_follows_the_seed():
    same, other = first(8), first(8, seed=4)
    np.testing.assert_array_equal([rows_of(b) for b in first(8)], [rows_of(b) for b in same])
    assert [rows_of(b).tolist() for b in same] != [rows_of(b).tolist() for b in other]
    # A later epoch of one seed is not an epoch of the next seed.
    one, two = (np.stack([rows_of(b) for b in first(12, seed=s)]).reshape(3, 20) for s in (0, 1))
    assert not {tuple(e) for e in one.tolist()} & {tuple(e) for e in two.tolist()}


def test_evaluation_sees_every_image_once_and_masks_padding():
    source = Numbered()
    batches = list(eval_batches(source, split="test", batch_size=3))
    assert [len(b.mask) for b in batches] == [3, 3, 3]
    seen = np.concatenate([rows_of(b)[b.mask] for b in batches])
    np.testing.assert_array_equal(seen, source.splits["test"])
    assert [b.mask.sum() for b in batches] == [3, 3, 2]
    # Without the mask one image would count twice.
    assert len(np.concatenate([rows_of(b) for b in batches])) == len(seen) + 1


def test_wrong_requests_say_what_to_do():
    source = Numbered()
    with pytest.raises(UsageError, match="batch_size is 24, but split 'train' has 23"):
        train_batches(source, batch_size=24, seed=0)
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        train_batches(source, split="trian", batch_size=2, seed=0)
    with pytest.raises(UsageError, match="'valid' of numbered has no images"):
        eval_batches(source, split="valid", batch_size=2)
    with pytest.raises(UsageError, match="batch_size"):
        eval_batches(source, split="test", batch_size=0)
    with pytest.raises(UsageError, match="seed"):
        train_batches(source, batch_size=2, seed=-1)
    with pytest.raises(UsageError, match="start_step"):
        train_batches(source, batch_size=2, seed=0, start_step=-1)


def test_errors_of_the_source_reach_the_caller():
    with pytest.raises(DataError, match="image x is damaged"):
        first(1, Numbered(broken=True))


def test_normalize_has_imagenet_units_and_an_inverse():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, 3)).astype(np.uint8)
    result = jax.jit(normalize)(images)
    assert result.dtype == jnp.float32
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(normalize(images.astype(np.float32)), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(denormalize)(result), images / 255, atol=1e-6)
    # Control: the channels have different statistics.
    assert np.abs(normalize(images[..., ::-1])[..., ::-1] - expected).max() > 0.1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_read_disjoint_parts_of_the_same_batches(count):
    options = {"batch_size": 4, "seed": 5}
    whole = first(12, **options)
    parts = [first(12, process_index=i, process_count=count, **options) for i in range(count)]
    for step, batch in enumerate(whole):
        rows = np.concatenate([rows_of(part[step]) for part in parts])
        np.testing.assert_array_equal(rows, rows_of(batch))
        labels = np.concatenate([part[step].attributes for part in parts])
        np.testing.assert_array_equal(labels, batch.attributes)
    epoch = np.concatenate([rows_of(part[step]) for part in parts for step in range(5)])
    assert len(set(epoch.tolist())) == 20, "no image twice, none lost"


READER = """
import sys, itertools
from facemix_jax.data import DataConfig, load_source, train_batches
source = load_source(DataConfig(image_size=(24, 20), train_examples=40, test_examples=8))
index, start = int(sys.argv[1]), int(sys.argv[2])
batches = train_batches(source, batch_size=8, seed=3, process_index=index, process_count=2,
                        start_step=start)
for batch in itertools.islice(batches, 5):
    print(*batch.images.reshape(4, -1).astype(int).sum(1))
"""


def test_two_operating_system_processes_share_an_epoch():
    def read(index, start):
        command = [sys.executable, "-c", READER, str(index), str(start)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    readers = [read(0, 0), read(1, 0), read(1, 2)]
    left, right, resumed = (r.communicate(timeout=120)[0].splitlines() for r in readers)
    assert [r.returncode for r in readers] == [0, 0, 0]
    assert resumed[:3] == right[2:], "a new process goes on where one stopped"
    source = load_source(DataConfig(image_size=(24, 20), train_examples=40, test_examples=8))
    every = source.images(source.splits["train"]).reshape(40, -1).astype(int).sum(1)
    assert len(set(every.tolist())) == 40, "sums tell the images apart"
    seen = [int(s) for line in left + right for s in line.split()]
    assert sorted(seen) == sorted(every.tolist()), "no image twice, none lost"


@pytest.mark.parametrize("stop", [1, 3, 7, 11])
def test_a_process_that_stops_anywhere_goes_on_with_the_same_batches(stop):
    options = {"batch_size": 4, "seed": 5, "process_index": 1, "process_count": 2}
    whole = [rows_of(b) for b in first(12, **options)]
    resumed = [rows_of(b) for b in first(12 - stop, start_step=stop, **options)]
    np.testing.assert_array_equal(whole[stop:], resumed)


class Crowd(Numbered):
    """Forty-six images of eight people."""

    @property
    def identities(self):
        return (np.arange(len(self)) // 6).astype(np.int32)


def repeats(batch, group_size):
    return sum(len(set(g)) < group_size for g in batch.identities.reshape(-1, group_size).tolist())


def test_groups_show_different_people_where_asked():
    options = {"batch_size": 20, "seed": 2}
    asked = first(30, Crowd(), distinct_groups=4, **options)
    free = first(30, Crowd(), **options)
    assert sum(repeats(b, 4) for b in asked) == 0
    assert sum(repeats(b, 4) for b in free) > 30, "the control: most groups repeat somebody"
    for a, b in zip(asked, free, strict=True):
        assert sorted(rows_of(a)) == sorted(rows_of(b)), "the same images, in another order"


def test_too_many_images_of_one_person_are_spread_as_far_as_they_go():
    one = Crowd()
    batch = next(train_batches(one, batch_size=20, seed=0, distinct_groups=10))
    groups = batch.identities.reshape(2, 10)
    for person in range(8):
        in_groups = (groups == person).sum(axis=1)
        assert np.ptp(in_groups) <= 1


def test_resident_batches_are_the_same_batches():
    options = {"batch_size": 4, "seed": 5, "start_step": 3, "distinct_groups": 2}
    expected = first(8, **options)
    resident = first(8, on_device(Numbered()), **options)
    for batch, other in zip(resident, expected, strict=True):
        assert isinstance(batch.images, jax.Array)
        np.testing.assert_array_equal(np.asarray(batch.images), other.images)
        np.testing.assert_array_equal(batch.attributes, other.attributes)
        np.testing.assert_array_equal(batch.identities, other.identities)
        assert batch.mask.all()


def test_images_that_do_not_fit_on_the_device_are_refused_first(monkeypatch):
    class Small:
        def memory_stats(self):
            return {"bytes_limit": 100}

    source = Numbered()
    monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    with pytest.raises(UsageError, match=r"device_resident") as error:
        on_device(source)
    assert "GB" in str(error.value)
    assert source.calls == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"process_count": 3}, "process_count"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"process_count": 0}, "process_count"),
        ({"distinct_groups": 3}, "distinct_groups"),
    ],
)
def test_shares_and_groups_that_do_not_fit(options, word):
    with pytest.raises(UsageError, match=word):
        first(1, batch_size=4, **options)
