"""``facemix train`` with several seeds, a profile and its summary line."""

import json
import time
import types

import fitting_support
import jax
import pytest

from facemix_jax import cli, fitting, loop, speed, trials

pytestmark = pytest.mark.library_promotes  # Optax

SMALL = ["--image-size", "40", "36", "--train-examples", "128", "--test-examples", "32"]
TRAIN = [*SMALL, "--width", "4", "--num-epochs", "1", "--batch-size", "16", "--log-every", "4"]
FIGURE = {"name": "leak", "value": 0.99, "floor": 0.6, "owner": 1.0}


@pytest.fixture
def quick_scores(monkeypatch):
    scores = {"accuracy": 0.9, "balanced_accuracy": 0.7, "examples": 32}
    scores |= {"majority_accuracy": 0.8, "majority_balanced_accuracy": 0.5}
    result = {"split": "test", "clean": scores, "protected": scores, "strongest": FIGURE}
    result |= {"leakage": {"robust": FIGURE}, "skipped": {}}
    monkeypatch.setattr(trials, "utilities", lambda run, split: result)


def test_several_seeds_leave_ordinary_work_directories(capsys, tmp_path, quick_scores):
    folder = tmp_path / "seeds"
    command = ["train", "--workdir", str(folder), *TRAIN, "--num-seeds", "2", "--seed", "5"]
    command += ["--seeds-method", "loop", "--profile", "--json", "-"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (list(result["seeds"]), result["diverged"]) == (["5", "6"], [])
    assert result["speed"]["steps"] == 7, "the first step compiles and does not count"
    for word in ("images/s", "ms a step", "of what matrix products reach", "waiting for data"):
        assert word in " ".join(captured.err.split())
    for seed in (5, 6):
        config = json.loads((folder / f"seed-{seed}" / "config.json").read_text())
        assert config["train"]["seed"] == seed
        assert (folder / f"seed-{seed}" / "metrics.jsonl").read_text().count("\n") == 2
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert cli.main(["evaluate", "--workdir", str(folder / "seed-6")]) == 0
    one = ["train", "--workdir", str(folder / "seed-5"), *TRAIN, "--num-seeds", "2"]
    assert cli.main(one) == 2
    assert "holds one run" in " ".join(capsys.readouterr().err.split())


def test_seeds_that_diverge_withhold_no_scores_of_the_others(
    capsys, tmp_path, quick_scores, monkeypatch
):
    found = loop._means
    monkeypatch.setattr(loop, "_means", lambda infos: [*found(infos)[:1], (float("nan"), 0.5)])
    command = ["train", "--workdir", str(tmp_path / "seeds"), *TRAIN, "--num-seeds", "2"]
    command += ["--seed", "5", "--seeds-method", "loop", "--json", str(tmp_path / "seeds.json")]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    result = json.loads((tmp_path / "seeds.json").read_text())
    assert (list(result["seeds"]), result["diverged"]) == (["5"], [6])
    rows = {line.strip(" │|").split("  ")[0]: line for line in captured.out.splitlines()}
    assert "0.7000" in rows["seed 5"]
    assert "diverged" in rows["seed 6"]
    assert "0.7000" in rows["mean"]
    assert "The loss is nan at step 4" in " ".join(captured.err.split())


def test_where_all_seeds_diverge_there_is_no_table(capsys, tmp_path, monkeypatch):
    def diverge(configs, workdirs, **options):
        error = fitting.DivergedError("both diverged")
        error.states = [None, None]
        raise error

    monkeypatch.setattr(fitting, "fit_together", diverge)
    command = ["train", "--workdir", str(tmp_path / "seeds"), *TRAIN, "--num-seeds", "2"]
    assert cli.main([*command, "--json", str(tmp_path / "seeds.json")]) == 1
    assert "facemix: both diverged" in capsys.readouterr().err
    assert not (tmp_path / "seeds.json").exists()


def test_a_folder_of_several_seeds_takes_no_single_run(capsys, tmp_path):
    (tmp_path / "seed-5").mkdir()
    (tmp_path / "seed-5" / "config.json").write_text("{}")
    assert cli.main(["train", "--workdir", str(tmp_path), *TRAIN, "--seed", "5"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds the runs of several seeds, as seed-5. Give their --num-seeds" in said
    assert [path.name for path in tmp_path.iterdir()] == ["seed-5"]


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ('{"method": "vmap", "runs": 2}', "vmap"),
        ('{"method": "vmap", "runs": 2, "device": "cpu"}', "vmap"),
        ('{"method": "vmap", "runs": 2, "device": "H100"}', "auto"),
        ('{"method": "vmap", "runs": 4, "device": "cpu"}', "auto"),
        ('{"method": "scan", "runs": 2}', "auto"),
        ('{"method": [], "runs": 2}', "auto"),
        ("[]", "auto"),
        ("{", "auto"),
        (None, "auto"),
    ],
)
def test_a_choice_of_the_method_that_is_damaged_or_of_others_is_made_again(tmp_path, text, method):
    path = tmp_path / trials.CHOICE
    if text is not None:
        path.write_text(text)
    assert loop._chosen(path, 2) == method


def test_the_time_of_starting_and_writing_a_trace_is_no_part_of_the_speed(
    tmp_path, tiny_source, monkeypatch
):
    """Each takes 1,000 s here, by the loop's clock."""
    calls = []

    def slow(*folder):
        calls.append(folder)

    clock = types.SimpleNamespace(perf_counter=lambda: time.perf_counter() + 1000 * len(calls))
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(jax.profiler, "start_trace", slow)
    monkeypatch.setattr(jax.profiler, "stop_trace", slow)
    meter = speed.Meter()
    options = fitting.Options(show_progress=False, meter=meter, profile=tmp_path / "profile")
    config = fitting_support.config_of(log_every=12, num_epochs=3, checkpoint_every=12)
    fitting.fit(config, tmp_path / "run", source=tiny_source, options=options)
    assert calls == [(str(tmp_path / "profile"),), ()]
    assert meter.steps == 11
    assert meter.seconds < 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-seeds", "0"], "num_seeds is 0"),
        (["--num-seeds", "2", "--seeds-method", "scan"], "'scan' is unknown"),
        (["--model-devices", "64"], "need 64 devices"),
        (["--coordinator", "first:1"], "takes both numbers"),
    ],
)
def test_wrong_numbers_are_wrong_usage(capsys, tmp_path, options, words):
    try:
        code = cli.main(["train", "--workdir", str(tmp_path / "w"), *TRAIN, *options])
    except SystemExit as exit_:  # the parser's
        code = exit_.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "w").exists()


def test_waiting_and_utilisation_are_shares(monkeypatch):
    from facemix_jax import costs
    from facemix_jax.models import resnet18

    model = resnet18(image_size=(40, 36), width=4, num_attributes=3)
    cost = costs.model_cost(model, group_size=1)
    step = 2 * (3 * cost.macs - cost.pre.layers[0].macs)
    monkeypatch.setattr(speed, "matmul_rate", lambda dtype: step * 100.0)
    meter = speed.Meter()
    assert meter.summary(model, "float32") == {}
    assert "too few" in speed.line({})
    meter.waited(5)
    meter.forget()  # compiling
    meter.waited(0.5)
    meter.add(4, 64, 2.0)
    meter.devices = 2
    found = meter.summary(model, "float32")
    assert found["images_per_second"] == 32
    assert found["seconds_per_step"] == 0.5
    assert found["waiting_for_data"] == 0.25
    assert found["model_flops_utilisation"] == pytest.approx(32 / 200)
