import itertools
import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from facemix_jax import metrics
from facemix_jax._validate import DataError, UsageError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _naive_counts(predicted, labels, mask):
    counts = np.zeros((labels.shape[1], 2, 2), np.int64)
    for row, attribute in itertools.product(range(labels.shape[0]), range(labels.shape[1])):
        if mask[row]:
            counts[attribute, labels[row, attribute], predicted[row, attribute]] += 1
    return counts


class TestAttributeCounts:
    def test_counts_equal_a_naive_loop(self, rng):
        logits = rng.normal(size=(37, 5, 2)).astype(np.float32)
        labels, mask = rng.integers(0, 2, (37, 5)), rng.random(37) < 0.7
        counts = metrics.attribute_counts(logits, labels, mask)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, _naive_counts(logits.argmax(-1), labels, mask))

    def test_logits_and_their_classes_count_alike(self, rng):
        logits, labels = rng.normal(size=(9, 4, 2)), rng.integers(0, 2, (9, 4))
        np.testing.assert_array_equal(
            metrics.attribute_counts(logits, labels),
            metrics.attribute_counts(logits.argmax(-1), labels.astype(np.int8)),
        )

    def test_two_attributes_of_classes_are_not_taken_for_logits(self):
        counts = metrics.attribute_counts([[0, 1], [0, 1]], [[0, 1], [1, 1]])
        assert counts.tolist() == [[[1, 0], [1, 0]], [[0, 0], [0, 2]]]

    def test_counts_of_batches_add_up_and_padding_counts_for_nothing(self, rng):
        predicted, labels = rng.integers(0, 2, (2, 20, 3))
        whole = metrics.attribute_counts(predicted, labels)
        padded = np.pad(predicted[12:], ((0, 4), (0, 0))), np.pad(labels[12:], ((0, 4), (0, 0)))
        parts = metrics.attribute_counts(predicted[:12], labels[:12])
        parts = parts + metrics.attribute_counts(*padded, np.arange(12) < 8)
        np.testing.assert_array_equal(whole, parts)

    def test_a_batch_of_padding_counts_nothing(self):
        assert metrics.attribute_counts([[1]], [[1]], [False]).sum() == 0

    def test_nan_logits_are_an_error_unless_masked(self):
        logits, labels = np.array([[[np.nan, 0.0]], [[0.0, 1.0]]]), [[1], [1]]
        with pytest.raises(DataError, match="finite"):
            metrics.attribute_counts(logits, labels)
        assert metrics.attribute_counts(logits, labels, [False, True]).sum() == 1

    @pytest.mark.parametrize("labels", [[[-1]], [[2]]])
    def test_labels_other_than_zero_and_one_are_an_error(self, labels):
        with pytest.raises(DataError, match="0 or 1"):
            metrics.attribute_counts([[1]], labels)

    def test_shapes_that_do_not_belong_together_are_an_error(self):
        with pytest.raises(UsageError, match="matching"):
            metrics.attribute_counts(np.zeros((3, 2)), np.zeros((3, 4)))
        with pytest.raises(UsageError, match="mask"):
            metrics.attribute_counts(np.zeros((3, 2)), np.zeros((3, 2)), np.ones(2, bool))


class TestAccuracy:
    def test_accuracies_agree_with_scikit_learn(self, rng):
        labels = (rng.random((200, 6)) < np.linspace(0.05, 0.9, 6)).astype(int)
        predicted = np.where(rng.random((200, 6)) < 0.7, labels, 1 - labels)
        counts = metrics.attribute_counts(predicted, labels)
        np.testing.assert_allclose(metrics.accuracy(counts), (predicted == labels).mean(0))
        expected = [balanced_accuracy_score(labels[:, k], predicted[:, k]) for k in range(6)]
        np.testing.assert_allclose(metrics.balanced_accuracy(counts), expected)

    def test_always_predicting_the_majority_is_balanced_to_one_half(self, rng):
        labels = (rng.random((100, 3)) < 0.1).astype(int)
        counts = metrics.attribute_counts(np.zeros_like(labels), labels)
        assert metrics.accuracy(counts).min() > 0.75
        np.testing.assert_array_equal(metrics.balanced_accuracy(counts), 0.5)

    def test_an_absent_class_is_left_out_as_in_scikit_learn(self):
        labels, predicted = np.zeros((4, 1), int), np.array([[0], [0], [0], [1]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = balanced_accuracy_score(labels[:, 0], predicted[:, 0])
        counts = metrics.attribute_counts(predicted, labels)
        assert metrics.balanced_accuracy(counts).tolist() == [expected] == [0.75]

    @pytest.mark.parametrize("score", [metrics.accuracy, metrics.balanced_accuracy])
    def test_an_attribute_without_examples_is_an_error(self, score):
        with pytest.raises(DataError, match="Attribute 1 has no examples"):
            score(np.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]]]))


class TestMatchedCorrelation:
    def test_order_sign_scale_and_offset_do_not_matter(self, rng):
        truth = rng.normal(size=(5, 6, 7, 3))
        order, signs = rng.permutation(5), np.array([1, -1, -1, 1, -1])
        recovered = (signs * [1, 2, 3, 4, 5])[:, None, None, None] * truth[order] + 3.0
        found = metrics.matched_correlation(recovered, truth)
        np.testing.assert_allclose(found.per_source, 1)
        np.testing.assert_array_equal(order[found.permutation], np.arange(5))
        np.testing.assert_array_equal(found.signs, signs[found.permutation])

    def test_it_is_the_best_of_all_permutations(self, rng):
        truth, recovered = rng.normal(size=(2, 4, 30))
        pairs = np.abs(np.corrcoef(truth, recovered)[:4, 4:])
        best = max(
            pairs[np.arange(4), p].mean() for p in map(list, itertools.permutations(range(4)))
        )
        assert metrics.matched_correlation(recovered, truth).mean == pytest.approx(best)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
    def test_constant_images_correlate_with_nothing(self, rng, value):
        truth = rng.normal(size=(3, 50))
        recovered = np.stack([truth[0], np.full(50, value), truth[2]])
        found = metrics.matched_correlation(recovered, truth)
        np.testing.assert_allclose(found.per_source, [1, 0, 1], atol=1e-12)
        assert found.signs[1] == 0

    @pytest.mark.parametrize("contrast", [1e-3, 1e-6, 1e-9])
    def test_faint_images_on_a_bright_background_are_not_constant(self, rng, contrast):
        truth = rng.normal(size=(3, 50))
        found = metrics.matched_correlation(1 + contrast * truth, truth)
        np.testing.assert_allclose(found.per_source, 1, atol=1e-6)

    def test_bad_images_are_an_error(self):
        with pytest.raises(UsageError, match="same group"):
            metrics.matched_correlation(np.ones((2, 3)), np.ones((3, 3)))
        with pytest.raises(DataError, match="finite"):
            metrics.matched_correlation(np.full((2, 3), np.nan), np.ones((2, 3)))
        with pytest.raises(UsageError, match="not empty"):
            metrics.psnr(np.ones((2, 0)), np.ones((2, 0)))
        assert np.isposinf(metrics.psnr(np.ones((1, 1)), np.ones((1, 1)))).all()


class TestImageErrors:
    def test_assignment_mse_is_the_least_over_all_permutations(self, rng):
        truth, recovered = rng.normal(size=(2, 4, 3, 5))
        best = min(
            ((recovered[list(p)] - truth) ** 2).mean() for p in itertools.permutations(range(4))
        )
        assert metrics.assignment_mse(recovered, truth) == pytest.approx(best)
        assert metrics.assignment_mse(truth[::-1], truth) == pytest.approx(0, abs=1e-12)
        matched = recovered[metrics.assignment(recovered, truth)]
        assert ((matched - truth) ** 2).mean() == pytest.approx(best)

    def test_psnr_follows_its_definition(self, rng):
        truth, recovered = rng.random((2, 3, 8, 8, 3))
        expected = [
            20 * np.log10(2 / np.sqrt(np.mean((r - t) ** 2)))
            for r, t in zip(recovered, truth, strict=True)
        ]
        np.testing.assert_allclose(metrics.psnr(recovered, truth, max_value=2.0), expected)
        assert np.isposinf(metrics.psnr(truth, truth)).all()

    def test_ssim_is_one_for_equal_images_and_falls_with_noise(self, rng):
        truth = rng.random((2, 16, 14, 3))
        noisy = [truth + scale * rng.normal(size=truth.shape) for scale in (0.05, 0.5)]
        scores = [metrics.ssim(image, truth) for image in (truth, *noisy)]
        np.testing.assert_allclose(scores[0], 1, atol=1e-5)
        assert (scores[0] > scores[1]).all()
        assert (scores[1] > scores[2]).all()

    def test_ssim_of_constant_images_follows_its_definition(self):
        # Without variance only the luminance term is left.
        a, b, c1 = 0.25, 0.75, 0.01**2
        score = metrics.ssim(np.full((1, 12, 12, 1), a), np.full((1, 12, 12, 1), b))
        assert score[0] == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-3)

    def test_images_smaller_than_the_window_are_an_error(self):
        with pytest.raises(UsageError, match="11 pixels"):
            metrics.ssim(np.zeros((1, 10, 20, 3)), np.zeros((1, 10, 20, 3)))
        smallest = np.ones((1, 11, 11, 3))
        np.testing.assert_allclose(metrics.ssim(smallest, smallest), 1, atol=1e-5)


class TestAmariDistance:
    def test_scaled_permutations_of_the_inverse_are_at_zero(self, rng):
        mixing = rng.normal(size=(6, 6))
        scale = rng.normal(size=(6, 1))
        unmixing = scale * np.linalg.inv(mixing)[rng.permutation(6)]
        assert metrics.amari_distance(unmixing, mixing) == pytest.approx(0, abs=1e-9)

    def test_equal_entries_are_at_one_and_noise_lies_between(self, rng):
        assert metrics.amari_distance(np.eye(4), np.ones((4, 4))) == 1
        distances = [
            metrics.amari_distance(np.eye(5) + scale * rng.normal(size=(5, 5)), np.eye(5))
            for scale in (0.01, 0.1, 1.0)
        ]
        assert 0 < distances[0] < distances[1] < distances[2] < 1

    def test_it_equals_a_naive_loop(self, rng):
        unmixing, mixing = rng.normal(size=(2, 3, 3))
        p = np.abs(unmixing @ mixing)
        total = sum(
            p[i, j] / p[i].max() + p[i, j] / p[:, j].max() for i in range(3) for j in range(3)
        )
        assert metrics.amari_distance(unmixing, mixing) == pytest.approx((total - 6) / (2 * 3 * 2))

    def test_matrices_without_a_distance_are_an_error(self):
        with pytest.raises(UsageError, match="full rank"):
            metrics.amari_distance(np.diag([1.0, 0.0]), np.eye(2))
        for matrices in ((np.ones((2, 3)), np.eye(2)), (3.0, 2.0), (np.eye(2), 2.0), ([], [])):
            with pytest.raises(UsageError, match="two"):
                metrics.amari_distance(*matrices)
        for value in (np.nan, np.inf):
            with pytest.raises(DataError, match="finite"):
                metrics.amari_distance([[value, 1.0], [0.0, 1.0]], np.eye(2))
            with pytest.raises(DataError, match="finite"):
                metrics.amari_distance(np.eye(2), [[1.0, 0.0], [value, 1.0]])
