"""Figure 5, the phase diagram and the challenge: helpers, the scorer, and every smoke scale."""

import figure5
import jax
import linearity as linearity_script
import numpy as np
import phase
import phase_summary
import pytest
import regroup
import report
import separation_real
import separation_variants

from facemix_jax import data, defenses, results, runs
from facemix_jax._validate import UsageError
from facemix_jax.serving import wire

SHAPE = (8, 5, 4, 2)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The phase diagram.


@pytest.mark.parametrize("dtype", wire.DTYPES)
def test_rounding_is_that_of_the_wire(dtype):
    x = normal(0)
    x[0, :, :, 1] = 0  # a channel without anything
    arrived = wire.decode(wire.encode(x, dtype), row_shape=SHAPE[1:], max_rows=8)
    np.testing.assert_allclose(defenses.rounded(jax.numpy.asarray(x), dtype), arrived, rtol=1e-6)


def test_four_bits_hold_fifteen_values_of_a_channel():
    rows = np.asarray(defenses.rounded(jax.numpy.asarray(normal(0, (2, 40, 40, 3))), "int4"))
    assert max(len(np.unique(rows[b, :, :, c])) for b in range(2) for c in range(3)) == 15


def phase_cells():
    return [
        {
            "group_size": size,
            "noise": noise,
            "wire": "int8",
            "seed": seed,
            "attackers": {"gradient_ica": 0.4, "robust": 0.5},
            "strongest": 0.5 + 0.1 * seed,
            "floor": 0.3,
            "owner": 0.9,
            "key_advantage": 0.4,
            "filtered": {"value": 0.7, "floor": 0.6, "guess": 0.75, "owner": 0.95},
            "accuracy": 0.8 + 0.01 * noise * size,
            "balanced_accuracy": 0.6,
        }
        for size in (2, 8)
        for noise in (0.0, 1.0)
        for seed in (0, 1)
    ]


def test_phase_tables_average_seeds_and_show_the_strongest():
    (table,), (chart,) = phase_summary.summarize(phase_cells())
    assert [row.label for row in table.rows][:2] == ["M = 2, noise 0", "M = 2, noise 1"]
    strongest = table.rows[0].cells[1][0]
    assert strongest.value == pytest.approx(0.55)
    assert strongest.seeds == 2
    assert strongest.half_width > 0
    assert len(chart.curves) == 4
    values = {
        column.name: listed[0].value
        for column, listed in zip(table.columns, table.rows[0].cells, strict=True)
    }
    assert values["strongest, filtered"] == pytest.approx(0.7)
    assert values["key advantage, filtered"] == pytest.approx(0.95 - 0.75)  # over the guess


def test_lines_of_equal_accuracy_are_round_and_few():
    lines = phase_summary.levels([np.array([[0.801, 0.874]])])
    np.testing.assert_allclose(lines, [0.82, 0.84, 0.86])
    assert not len(phase_summary.levels([np.full((2, 2), 0.8)]))


def test_the_phase_picture_is_a_png():
    assert phase_summary.picture(phase_cells()).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"seeds": -1}, "seeds is -1"),
        ({"seeds": 0}, "seeds is 0"),
        ({"images": 16}, "images is 16, but a group has 32"),
        ({"scored": 40, "group_sizes": (8, 16)}, "16 does not divide images_scored_at_once 40"),
        ({"group_sizes": (128,), "images": 128}, "128 does not divide images_scored_at_once 64"),
    ],
)
def test_phase_refuses_sizes_that_do_not_fit_before_it_begins(sizes, words):
    with pytest.raises(UsageError, match=words):
        phase.Config(**sizes)
    phase.Config(scored=40, group_sizes=(8, 20))


# Figure 5.


def test_faces_are_matched_within_groups():
    truth = normal(0, (4, 3, 3, 3))
    groups = truth.reshape(2, 2, 3, 3, 3)[:, ::-1]
    np.testing.assert_array_equal(figure5.matched(groups, truth).faces, truth)


def test_figure_5_tables_hold_the_strongest_beside_each_attacker():
    def scores(**values):
        return {name: {"minus_squared_error": v, "ssim": v} for name, v in values.items()}

    ica = {"correlation": 0.99, "correlation_no_attack": 0.6, "correlation_owner": 1.0}
    found = scores(**{"as sent": -0.3, "Pix2Pix": -0.27, "gradient ICA": -0.02, "mean face": -0.3})
    found["gradient ICA"] |= {**ica, "signs_right": 1.0}
    cell = {"system": figure5.FACEMIX, "images": 64, "scores": found}
    first, *_, last = figure5.tables([cell])
    names = [column.name for column in first.columns]
    assert first.rows[0].cells[names.index("strongest")][0].value == -0.02
    assert first.rows[0].cells[names.index("ridge")] == ()
    assert last.rows[0].cells[0][0].value == 0.99


def test_figure_5_refuses_broken_groups_and_unknown_systems():
    with pytest.raises(UsageError, match="does not divide"):
        figure5.Config(faces=12)
    with pytest.raises(UsageError, match="unknown"):
        figure5.Config(systems=("mosaic",))


def test_figure_5_shows_the_faces_that_its_scores_are_of(tmp_path, monkeypatch, tiny_source):
    attacked, shown = [], []

    def attack(target, rows, config, chosen):
        attacked.append(config.seed)
        return {"scores": {}}, {"raw": np.full((8, 2, 2, 3), config.seed)}

    def picture(faces, cells):
        shown.append(faces["blurring 8x8"]["raw"].flat[0])
        return b""

    monkeypatch.setattr(data, "load_source", lambda config: tiny_source)
    monkeypatch.setattr(figure5, "build", lambda *arguments: None)
    monkeypatch.setattr(figure5, "attacked", attack)
    monkeypatch.setattr(figure5, "picture", picture)
    monkeypatch.setattr(figure5, "tables", lambda cells, drawn: [])
    for seed in (0, 1, 0):
        figure5.main(
            figure5.Config(
                scale="smoke",
                systems=("blurring 8x8",),
                seed=seed,
                pictures=tmp_path,
                output=tmp_path / f"{seed}.json",
            )
        )
    assert shown == [0, 1, 0]
    assert attacked == [0, 1], "nothing is attacked again"


@pytest.mark.parametrize("script", [regroup, separation_variants])
def test_the_images_of_a_given_run_are_where_they_are_now(
    script, tmp_path, monkeypatch, tiny_source
):
    class LoadedError(Exception):
        pass

    def load(workdir, *, data_dir=None):
        raise LoadedError(data_dir)

    monkeypatch.setattr(report, "celeba", lambda *arguments: tiny_source)
    monkeypatch.setattr(runs, "load", load)
    monkeypatch.setattr(report, "celeba_images", lambda data_dir: {})
    config = script.Config(data_dir="now", workdir=tmp_path, image_size=tiny_source.image_size)
    with pytest.raises(LoadedError, match="now"):
        script.main(config)


# Every script at its smallest.


@pytest.mark.slow
@pytest.mark.library_promotes
def test_figure_5_smoke(tmp_path):
    config = figure5.Config(
        scale="smoke",
        systems=("blurring 8x8", figure5.FACEMIX),
        pictures=tmp_path,
        output=tmp_path / "f.json",
    )
    figure5.main(config)
    found = results.load(tmp_path / "f.json")
    ica = found.cells[1]["scores"]["gradient ICA"]
    assert ica["correlation"] > 0.98
    assert ica["signs_right"] > 0.9
    assert (tmp_path / "figure5_smoke.png").exists()
    written = (tmp_path / "f.json").stat().st_size
    figure5.main(config)
    assert len(results.load(tmp_path / "f.json").cells) == 2, "nothing is attacked again"
    assert written < 20_000, "no faces in it"


@pytest.mark.slow
@pytest.mark.library_promotes
def test_phase_smoke(tmp_path):
    config = phase.Config(scale="smoke", workdirs=tmp_path, output=tmp_path / "p.json")
    phase.main(config)
    cells = results.load(tmp_path / "p.json").cells
    assert len(cells) == 8
    without_noise = [cell for cell in cells if not cell["noise"]]
    assert all(cell["strongest"] > 0.97 for cell in without_noise)
    assert all(cell["strongest"] < 0.7 for cell in cells if cell["noise"])


@pytest.mark.slow
@pytest.mark.library_promotes
@pytest.mark.parametrize("script", [separation_real, regroup, linearity_script])
def test_other_scripts_smoke(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script.main(script.Config(scale="smoke", output=tmp_path / "x.json"))
    assert results.load(tmp_path / "x.json").tables
