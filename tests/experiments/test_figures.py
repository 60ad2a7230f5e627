"""Figure 5, the phase diagram and the challenge: helpers, the scorer, and every smoke scale."""

import dataclasses
import json
import struct
import zipfile

import challenge
import challenge_scoring as scoring
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

from facemix_jax import data, defenses, fitting, models, results, runs
from facemix_jax._validate import DataError, UsageError
from facemix_jax.serving import wire

SHAPE = (8, 5, 4, 2)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The scorer.


def test_scores_ignore_order_and_sign():
    truth, recovered = normal(0), normal(0) + 0.3 * normal(1)
    rng = np.random.default_rng(2)
    signs = rng.choice([-1, 1], len(truth)).reshape(-1, 1, 1, 1)
    again = (signs * recovered)[rng.permutation(len(truth))]
    assert scoring.scores_of(again, truth) == pytest.approx(scoring.scores_of(recovered, truth))


def test_the_truth_scores_perfectly_and_a_random_submission_by_chance():
    truth = normal(0, (64, 20, 20, 2))
    assert scoring.scores_of(truth, truth) == pytest.approx((1, 1, 0))
    # The best of 64 matches among |correlations| of deviation 1 / sqrt(800) = .035; .1 is three
    # deviations for the mean of any matching, and this seed is fixed.
    guess = scoring.scores_of(normal(1, truth.shape), truth)
    assert guess.correlation < 0.1
    assert guess.recovered == 0
    assert guess.squared_error > 0.9


def test_scores_fall_with_noise():
    truth = normal(0)
    scores = [scoring.scores_of(truth + s * normal(1), truth).correlation for s in (0.1, 0.5, 2)]
    assert scores == sorted(scores, reverse=True)


def submitted(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_submission_is_read_as_it_is(tmp_path):
    path = submitted(tmp_path / "mine.npz", recovered=normal(0))
    np.testing.assert_array_equal(scoring.read_submission(path, SHAPE), normal(0))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mine": normal(0)}, "not recovered.npy alone"),
        ({"recovered": normal(0), "more": normal(0)}, "not recovered.npy alone"),
        ({"recovered": normal(0)[1:]}, "holds shape"),
        ({"recovered": normal(0).astype(np.int32)}, "holds int32"),
        ({"recovered": np.full(SHAPE, np.nan)}, "NaN, or numbers"),
        ({"recovered": np.full(SHAPE, 1e200)}, "numbers beyond 1e[+]100"),
        ({"recovered": np.zeros((80, 50, 4, 2))}, "more than float64"),
        ({"recovered": np.array([{}], object)}, "holds object"),
    ],
)
def test_malformed_submissions_are_refused(tmp_path, arrays, reason):
    with pytest.raises(UsageError, match=reason):
        scoring.read_submission(submitted(tmp_path / "mine.npz", **arrays), SHAPE)


def test_files_that_are_no_submission_are_refused(tmp_path):
    text = tmp_path / "mine.npz"
    text.write_text("rows")
    for path in (text, tmp_path / "missing.npz"):
        with pytest.raises(UsageError, match="cannot be read"):
            scoring.read_submission(path, SHAPE)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}", "holds shape"),
        ("{'descr': '<f8', (((", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_what_a_submission_says_of_itself_is_not_trusted(tmp_path, header, reason):
    path = tmp_path / "mine.npz"
    magic = b"" if header is None else b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recovered.npy", magic + (header or "abc").encode())
    with pytest.raises(UsageError, match=reason):
        scoring.read_submission(path, SHAPE)


def test_a_damaged_submission_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, recovered=normal(0))
    raw = bytearray(path.read_bytes())
    raw[200:260] = b"\xff" * 60
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="cannot be read"):
        scoring.read_submission(path, SHAPE)


@pytest.mark.parametrize("factor", [1e-300, scoring.LARGEST / 10])
def test_the_scale_of_a_submission_does_not_count(factor):
    scores = scoring.scores_of(np.float64(normal(0)) * factor, normal(0))
    assert scores.correlation == pytest.approx(1)
    assert np.isfinite(scores.squared_error)


# The challenge's two sides.


def published(folder, source):
    config = challenge.Make(
        public=folder / "public",
        private=folder / "hidden.npz",
        group_size=4,
        groups=2,
        known_groups=2,
        noise=0.1,
    )
    run_config = runs.RunConfig(
        data=data.DataConfig(image_size=source.image_size),
        model=models.ModelConfig(width=4),
        defense=defenses.DefenseConfig(group_size=4, noise=0.1),
    )
    model = runs.build_model(run_config, source)
    variables = model.init(jax.random.key(0))
    defense = defenses.build(run_config.defense)
    challenge.publish(config, runs.Run(run_config, source, model, defense, variables, 0))
    return config


@pytest.fixture(scope="module")
def sides(tmp_path_factory, tiny_source):
    return published(tmp_path_factory.mktemp("challenge"), tiny_source)


def leaks(public, private):
    """Names of hidden arrays of which a row of 32 bytes or more stands in a public file."""
    written = [path.read_bytes() for path in sorted(public.iterdir())]
    with np.load(private) as hidden:
        return {
            name
            for name in hidden.files
            for row in (hidden[name] if hidden[name].ndim > 1 else [hidden[name]])
            for content in written
            if row.tobytes() in content
        }


def test_nothing_hidden_stands_in_the_public_folder(sides, tmp_path):
    assert leaks(sides.public, sides.private) == set()
    with np.load(sides.private) as hidden:
        (tmp_path / "leak").write_bytes(b"x" + hidden["matrix"][1].tobytes())
    assert leaks(tmp_path, sides.private) == {"matrix"}, "the check notices a leak"


def test_the_private_file_is_its_owners_only(sides):
    assert sides.private.stat().st_mode & 0o077 == 0


def test_secrets_are_new_every_time(sides):
    first, second = (challenge.draw_secrets(sides, tiles=1) for _ in range(2))
    for name in ("people", "pictures", "noise", "matrix", "nonce"):
        assert (getattr(first, name) != getattr(second, name)).any(), name


def score_of(sides, rows, folder):
    path = submitted(folder / "mine.npz", recovered=rows)
    return scoring.score(
        scoring.Score(public=sides.public, private=sides.private, submission=path)
    )["scores"]


def test_truth_and_mixtures_stand_where_they_should(sides, tmp_path):
    with np.load(sides.private) as hidden:
        truth = hidden["truth"]
    scores = score_of(sides, -truth[::-1], tmp_path)
    assert scores["submission"]["correlation"] == pytest.approx(1, abs=1e-4)
    assert scores["chance"]["correlation"] < scores["no attack"]["correlation"]
    assert scores["no attack"]["correlation"] < scores["owner"]["correlation"]
    with np.load(sides.public / scoring.MIXTURES) as stored:
        again = score_of(sides, stored["mixtures"], tmp_path)
    assert again["submission"] == again["no attack"]


def test_a_changed_truth_or_challenge_is_refused(sides, tmp_path):
    about, _ = scoring.read_public(sides.public)
    other = tmp_path / "other.npz"
    other.write_bytes(sides.private.read_bytes() + b"x")
    with pytest.raises(UsageError, match="not the published commitment"):
        scoring.read_private(other, about)
    copy = tmp_path / "public"
    copy.mkdir()
    for path in sides.public.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / scoring.MIXTURES).write_bytes(b"x")
    with pytest.raises(DataError, match="not the file that was published"):
        scoring.read_public(copy)
    with pytest.raises(UsageError, match="is no challenge"):
        scoring.read_public(tmp_path)


def test_a_challenge_is_not_written_over_another_or_beside_its_truth(sides, tmp_path):
    with pytest.raises(UsageError, match="is there already"):
        dataclasses.replace(sides)
    with pytest.raises(UsageError, match="which is published"):
        challenge.Make(public=tmp_path / "a", private=tmp_path / "a" / "hidden.npz")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for public in (tmp_path / "link", tmp_path / "b" / ".." / "a"):
        with pytest.raises(UsageError, match="which is published"):
            challenge.Make(public=public, private=tmp_path / "a" / "hidden.npz")


def test_a_stopped_challenge_keeps_its_training_until_all_is_written(tmp_path, monkeypatch):
    config = challenge.Make(
        public=tmp_path / "public", private=tmp_path / "hidden.npz", known_groups=20
    )
    seen = []

    def fit(wanted, workdir, **options):
        seen.append((wanted.data.test_examples, sorted(p.name for p in tmp_path.glob("*/*"))))
        workdir.mkdir(exist_ok=True)
        (workdir / "checkpoint").touch()
        if len(seen) == 1:
            raise fitting.StoppedError("everything is saved")

    monkeypatch.setattr(data, "load_source", lambda config: None)
    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(runs, "from_state", lambda *arguments: None)
    monkeypatch.setattr(challenge, "publish", lambda *arguments: None)
    with pytest.raises(fitting.StoppedError):
        challenge.make(config)
    challenge.make(config)
    images = 20 * config.group_size
    assert seen == [(images, []), (images, ["checkpoint"])]
    assert not list(tmp_path.iterdir()), "nothing is left of it, and it was never in public"


def test_an_encrypted_submission_is_refused(sides, tmp_path):
    _, mixtures = scoring.read_public(sides.public)
    path = tmp_path / "mine.npz"
    np.savez(path, **{scoring.SUBMITTED: mixtures})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # general purpose flag, bit 0, of the directory's entry
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="encrypted"):
        scoring.read_submission(path, mixtures.shape)


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


def test_lines_of_equal_accuracy_are_round_and_few():
    lines = phase_summary.levels([np.array([[0.801, 0.874]])])
    np.testing.assert_allclose(lines, [0.82, 0.84, 0.86])
    assert not len(phase_summary.levels([np.full((2, 2), 0.8)]))


def test_the_phase_picture_is_a_png():
    assert phase_summary.picture(phase_cells()).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
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
def test_plain_facemix_falls_to_the_baseline(tmp_path):
    public, private, mine = (tmp_path / name for name in ("public", "hidden.npz", "mine.npz"))
    challenge.main(challenge.Make(public=public, private=private))
    challenge.main(challenge.Baseline(public=public, submission=mine))
    score = scoring.Score(
        public=public, private=private, submission=mine, output=tmp_path / "s.json"
    )
    challenge.main(score)
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert scores["submission"]["correlation"] > 0.98
    assert scores["no attack"]["correlation"] < 0.85


@pytest.mark.slow
@pytest.mark.library_promotes
@pytest.mark.parametrize("script", [separation_real, regroup, linearity_script])
def test_other_scripts_smoke(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script.main(script.Config(scale="smoke", output=tmp_path / "x.json"))
    assert results.load(tmp_path / "x.json").tables
