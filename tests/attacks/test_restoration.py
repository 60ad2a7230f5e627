"""Ridge regression in its dual form is that of the textbooks, and chooses its ridge on others."""

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error

from facemix_jax.attacks import restoration


def examples(num, noise):
    """Smooth signals of 60 numbers along 10 directions, and the same under noise."""
    rng = np.random.default_rng(0)
    clean = (rng.normal(size=(num, 10)) @ rng.normal(size=(10, 60))).astype(np.float32)
    return clean, (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)


def by_scikit(inputs, outputs):
    """The primal form in float64, with the ridge that restores one example in eight best."""
    inputs, outputs = inputs.astype(np.float64), outputs.astype(np.float64)
    held = np.arange(len(inputs)) % 8 == 1
    x, y = inputs[~held], outputs[~held]
    unit = np.square(x - x.mean(0)).sum(1).mean()
    fitted = [Ridge(alpha=ridge * unit).fit(x, y) for ridge in np.geomspace(1e-4, 10, 11)]
    errors = [mean_squared_error(model.predict(inputs[held]), outputs[held]) for model in fitted]
    return fitted[int(np.argmin(errors))]


def test_ridge_regression_is_that_of_scikit_learn():
    for noise in (0.1, 3.0):
        clean, noisy = examples(200, noise)
        made = restoration.fit_ridge(noisy[:160], clean[:160])(noisy[160:])
        wanted = by_scikit(noisy[:160], clean[:160]).predict(noisy[160:])
        np.testing.assert_allclose(made, wanted, atol=1e-3)
        assert mean_squared_error(made, clean[160:]) < 0.9 * np.square(noisy - clean).mean()
    other = by_scikit(noisy[:160], noisy[:160]).predict(noisy[160:])
    assert np.abs(other - wanted).max() > 0.1  # the control: a regression on other outputs differs


def test_what_does_not_depend_on_the_inputs_is_guessed_by_its_mean():
    clean, noisy = examples(200, 1.0)
    unrelated = np.roll(clean, 77, axis=0)
    made = restoration.fit_ridge(noisy[:160], unrelated[:160])(noisy[160:])
    mean = unrelated[:160].mean(0)
    assert np.abs(made - mean).mean() < 0.3 * np.abs(unrelated[160:] - mean).mean()
