"""Drawn faces: repeatable, stable per person, labelled as drawn, and separable like photographs."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA

from facemix_jax._validate import UsageError
from facemix_jax.data import DataConfig, face_model, load_source, synthetic

SIZE = (109, 89)


@pytest.fixture(scope="module")
def source():
    return synthetic.load(SIZE, train_examples=2000, test_examples=40)


def column(source, name):
    return source.attributes[:, source.attribute_names.index(name)].astype(float)


def test_attributes_are_the_forty_of_celeba(source):
    # CelebA's order is alphabetical.
    assert list(source.attribute_names) == sorted(source.attribute_names)
    assert source.attributes.shape == (2080, 40)
    assert source.attributes.dtype == np.int8
    assert set(np.unique(source.attributes)) == {0, 1}
    assert source.identities.dtype == np.int32


def test_splits_have_different_people_and_ten_images_each(source):
    assert [len(source.splits[s]) for s in ("train", "valid", "test")] == [2000, 40, 40]
    people = [set(source.identities[source.splits[s]].tolist()) for s in source.splits]
    assert [len(p) for p in people] == [200, 4, 4]
    assert len(set.union(*people)) == 208
    assert (np.bincount(source.identities[source.splits["train"]]) == 10).all()


def test_neighbours_in_a_split_are_different_people(source):
    for rows in source.splits.values():
        people = source.identities[rows]
        assert (people[1:] != people[:-1]).all()


def test_picture_depends_on_seed_and_place_only(source):
    rows = np.array([7, 1999, 7, 300])
    images = source.images(rows)
    other = synthetic.load(SIZE, train_examples=310, test_examples=25)
    alone = [other.images(np.array([row]))[0] for row in (300, 7)]
    np.testing.assert_array_equal(alone, images[[3, 0]])
    np.testing.assert_array_equal(
        other.images(np.sort(other.splits["test"])[:20]),
        source.images(np.sort(source.splits["test"])[:20]),
    )
    np.testing.assert_array_equal(images[0], images[2])
    # Control: another seed draws other people, another place another picture.
    changed = synthetic.load(SIZE, train_examples=310, test_examples=25, seed=1)
    assert np.abs(changed.images(np.array([7])).astype(float) - images[0]).mean() > 10
    assert np.abs(images[1].astype(float) - images[0]).mean() > 10


def test_pictures_are_equal_where_memory_is_too_small_to_keep_them(source, monkeypatch):
    monkeypatch.setattr(synthetic, "_KEEP_BYTES", 0)
    small = synthetic.load(SIZE, train_examples=20, test_examples=10)
    np.testing.assert_array_equal(small.images(np.arange(3)), source.images(np.arange(3)))
    assert small.images(np.arange(0)).shape == (0, *SIZE, 3)


def test_person_keeps_lasting_attributes_and_changes_momentary_ones(source):
    train = np.sort(source.splits["train"])
    grouped = source.attributes[train].reshape(200, 10, 40)
    varying = dict(zip(source.attribute_names, (grouped.std(axis=1) > 0).mean(axis=0), strict=True))
    for name in ("Male", "Young", "Big_Nose", "Blond_Hair", "Goatee", "Oval_Face", "Bald"):
        assert varying[name] == 0, name
    assert varying["Smiling"] > 0.9
    assert varying["Mouth_Slightly_Open"] > 0.9
    assert varying["Blurry"] > 0.2


def test_base_rates_and_correlations_are_about_those_of_celeba():
    source = load_source(DataConfig())
    for name, rate in (
        ("Male", 0.42), ("Young", 0.77), ("Smiling", 0.48), ("Wearing_Lipstick", 0.47),
        ("Eyeglasses", 0.07), ("Bald", 0.02), ("Black_Hair", 0.24), ("Wavy_Hair", 0.32),
        ("No_Beard", 0.83), ("Wearing_Hat", 0.05), ("Heavy_Makeup", 0.39), ("Blurry", 0.05),
    ):  # fmt: skip
        assert abs(column(source, name).mean() - rate) < 0.06, name
    rng = np.random.default_rng(0)
    for first, second, low, high in (
        ("Male", "Wearing_Lipstick", -0.95, -0.6),
        ("Heavy_Makeup", "Wearing_Lipstick", 0.6, 0.95),
        ("Smiling", "High_Cheekbones", 0.45, 0.9),
        ("Smiling", "Mouth_Slightly_Open", 0.35, 0.8),
        ("Young", "Gray_Hair", -0.6, -0.25),
        ("Male", "Blond_Hair", -0.5, -0.15),
        ("Young", "Attractive", 0.2, 0.6),
    ):
        a, b = column(source, first), column(source, second)
        assert low < np.corrcoef(a, b)[0, 1] < high, (first, second)
        assert abs(np.corrcoef(a, rng.permutation(b))[0, 1]) < 0.05


def test_no_attribute_contradicts_another(source):
    hair = [column(source, f"{c}_Hair") for c in ("Black", "Blond", "Brown", "Gray")]
    assert np.max(sum(hair)) == 1
    bald = column(source, "Bald") == 1
    assert bald.any()
    for name in ("Bangs", "Wavy_Hair", "Straight_Hair", "Black_Hair", "Receding_Hairline"):
        assert not column(source, name)[bald].any()
    bearded = sum(
        column(source, n) for n in ("Goatee", "5_o_Clock_Shadow", "Mustache", "Sideburns")
    )
    np.testing.assert_array_equal(column(source, "No_Beard")[bearded > 0], 0)
    assert not bearded[column(source, "Male") == 0].any()


def test_every_attribute_but_the_named_exceptions_is_drawn(source):
    # Different people with a beard, so that No_Beard has something to remove.
    chosen = (column(source, "No_Beard") == 0) & (column(source, "Wearing_Hat") == 0)
    rows = np.flatnonzero(chosen & (np.arange(len(source)) % 10 == 0))
    faces = jax.tree.map(lambda leaf: np.asarray(leaf)[rows[:16]], source._faces)
    texture = synthetic._texture(SIZE)

    def draw(faces):
        return np.asarray(synthetic._draw_faces(faces, texture, image_size=SIZE)).astype(int)

    plain = draw(faces)
    for place, name in enumerate(face_model.ATTRIBUTE_NAMES):
        attributes = np.array(faces.attributes)
        attributes[:, place] ^= True
        leaves = {**vars(faces), "attributes": attributes}
        change = np.abs(draw(face_model.Face(**leaves)) - plain).max(axis=(1, 2, 3))
        if name in face_model.NOT_DRAWN:
            assert change.max() == 0, name
        else:
            # A feature may be hidden on some, such as a second hair colour.
            assert np.sort(change)[-4] > 25, (name, change)


def test_people_are_recognised_again(source):
    people, size = 40, 10
    images = source.images(np.arange(people * size))[:, 20:90, 15:74].astype(float)
    images = images.reshape(people, size, -1)
    images -= images.mean(axis=2, keepdims=True)
    known, unknown = images[:, :5].mean(axis=1), images[:, 5:]

    def accuracy(known):
        distance = np.square(unknown[:, :, None] - known[None, None]).sum(axis=-1)
        return (distance.argmin(axis=-1) == np.arange(people)[:, None]).mean()

    assert accuracy(known) > 0.25
    # Control: with the people's names permuted, only chance is left (1 in 40).
    assert accuracy(np.roll(known, 7, axis=0)) < 0.1


def separate(images, seed):
    """Mean matched |correlation| of gradient ICA, and of the mixtures themselves."""
    sources = images.reshape(len(images), -1)
    rng = np.random.default_rng(seed)
    matrix = np.linalg.qr(rng.standard_normal((len(images),) * 2))[0]
    mixed = np.tensordot(matrix, images, 1)
    steps = [np.diff(mixed, axis=a).reshape(len(images), -1) for a in (1, 2)]
    ica = FastICA(whiten="unit-variance", max_iter=400, tol=1e-4, random_state=0)
    unmixing = ica.fit(np.concatenate(steps, axis=1)[:, ::2].T).components_
    flat = mixed.reshape(len(images), -1)

    def matched(found):
        c = np.abs(np.corrcoef(found, sources)[: len(images), len(images) :])
        return c[linear_sum_assignment(-c)].mean()

    return matched(unmixing @ flat), matched(flat)


# Gaussian images give ICA nothing to converge to.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_gradient_ica_separates_mixtures_of_drawn_faces(source):
    scores = []
    for seed in range(2):
        rows = np.random.default_rng(seed).choice(200, 8, replace=False) * 10
        scores.append(separate(source.images(rows).astype(float), seed))
    attack, floor = np.mean(scores, axis=0)
    assert attack >= 0.95
    assert floor < 0.85
    # Control: Gaussian images have no independent directions to be found.
    noise = np.random.default_rng(0).standard_normal((8, 40, 40, 3))
    assert separate(noise, 0)[0] < 0.85


def test_wrong_values():
    with pytest.raises(UsageError, match="seed"):
        synthetic.load(SIZE, seed=-1)
    with pytest.raises(UsageError, match="images_per_person"):
        synthetic.load(SIZE, images_per_person=0)
