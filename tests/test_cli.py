"""The command line as a user meets it: results, exit codes, errors, and a clean standard output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import SMALL, TRAIN, run

from facemix_jax import (
    attacks,
    claims,
    cli,
    commands_attack,
    demo,
    output,
    run_files,
    scores,
    trials,
)
from facemix_jax.attacks import Figure
from facemix_jax.data import DataConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax

UNREAD = ["--workdir", "w", "--dataset", "celeba", "--data-dir", "missing"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "m8"
    assert cli.main(["train", "--workdir", str(workdir), *TRAIN]) == 0
    return workdir


def test_evaluate_prints_clean_and_protected_with_the_leakage(capsys, workdir):
    code, out, _ = run(capsys, "evaluate", "--workdir", workdir, "--json", "-")
    result = json.loads(out)
    assert code == 0
    parts = {"split", "step", "clean", "protected", "leakage", "strongest", "skipped"}
    assert set(result) == {*parts, "provenance"}
    assert result["step"] == 4
    assert len(result["protected"]["per_attribute"]) == 40
    assert {"value", "floor", "owner", "key_advantage"} <= set(result["leakage"]["robust"])
    assert result["strongest"] in [
        {"attack": name, **figure} for name, figure in result["leakage"].items()
    ]


def test_tables_never_show_accuracy_without_leakage(capsys, workdir):
    _, out, _ = run(capsys, "evaluate", "--workdir", workdir)
    for word in ("clean", "protected", "balanced", "leakage", "robust", "floor", "owner"):
        assert word in out


def test_the_table_says_why_a_constant_answer_is_balanced_to_more_than_one_half(capsys):
    clean = {"accuracy": 0.8, "balanced_accuracy": 0.7, "majority_accuracy": 0.8, "examples": 32}
    names = dict.fromkeys("abcdefgh")
    figure = {"name": "x", "value": 1.0, "floor": 0.5, "owner": 1.0}
    result = {"split": "test", "leakage": {"robust": figure}, "skipped": {}}

    def shown(balanced):
        scores = {**clean, "majority_balanced_accuracy": balanced, "per_attribute": names}
        table = output.utility_table({**result, "clean": scores})
        output.emit(None, {}, table)
        return " ".join(capsys.readouterr().out.split())

    assert "one class only: 3 of 8" in (said := shown((5 * 0.5 + 3) / 8))
    assert "68.75% and not 50%" in said
    assert "one class" not in shown(0.5)


def test_a_run_keeps_no_other_names_than_those_that_no_result_may_have(workdir):
    with trials._alone(workdir):
        written = {path.name for path in workdir.iterdir()}
    assert {"config.json", "checkpoints", ".lock"} < written
    written |= {trials.RESULT, trials.FAILURE, trials.CHOICE, scores.SCORES}
    assert written | {claims.ANONYMIZER} <= run_files.OWN


def test_attack_writes_its_figures_to_a_file(capsys, workdir, tmp_path):
    path = tmp_path / "attack.json"
    pictures = tmp_path / "attack.png"
    options = ("--attack", "gradient_ica", "--num-groups", 2)
    files = ("--json", path, "--pictures", pictures)
    code, out, _ = run(capsys, "attack", "--workdir", workdir, *options, *files)
    assert code == 0
    for word in ("gradient_ica", "attacker", "owner", "advantage", "robust: ", "no key"):
        assert word in out
    result = json.loads(path.read_text())
    assert result["groups"] == 2
    assert set(result["attacks"]) == {"gradient_ica", "robust"}, "the strongest runs beside it"
    assert pictures.read_bytes().startswith(b"\x89PNG")


def test_results_replace_no_file_of_the_data_set(capsys, workdir, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("file,Smiling\n")
    given = ("--workdir", workdir, "--data-dir", tmp_path, "--json", labels)
    of_a_folder = ("train", "--dataset", "folder", *given)
    for command in (("attack", *given), ("evaluate", *given), of_a_folder):
        code, out, err = run(capsys, *command)
        assert (code, out) == (2, "")
        assert "labels.csv is there already, in the data set's folder" in " ".join(err.split())
    assert labels.read_text() == "file,Smiling\n"


def test_train_goes_on_and_refuses_another_configuration(capsys, workdir):
    assert run(capsys, "train", "--workdir", workdir, *TRAIN)[0] == 0
    code, _, err = run(capsys, "train", "--workdir", workdir, *TRAIN, "--cut", 2)
    assert code == 2
    assert "model.cut is 1 there and 2 here" in err


def test_cost_of_table_1_is_json_alone(capsys):
    code, out, _ = run(capsys, "cost", "--table1", "--json", "-")
    assert code == 0
    text = json.dumps(json.loads(out))
    for number in ("15470264320", "1498546112", "11207952", "11378179", "457487808"):
        assert number in text


def test_cost_of_one_model(capsys):
    code, out, _ = run(capsys, "cost", "--cut", 2)
    assert code == 0
    assert "275,011,008" in out
    assert "124,176" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--workdir", "w", "--group-size", "7"], ("7 does not divide", "63 or 70")),
        (["train", "--workdir", "w", "--network", "resnet"], ("'resnet' is unknown", "resnet18")),
        (["train", "--workdir", "w", *SMALL, "--cut", "12"], ("cut is 12", "to 9")),
        (["train", "--workdir", "w", "--dataset", "celeba"], ("data_dir",)),
        (["train"], ("workdir",)),
        (["train", "--workdir", "w", "--batchsize", "3"], ("batchsize",)),
        (["evaluate", "--workdir", "missing"], ("missing is no work directory", "facemix train")),
        (["train", "--workdir", __file__], (f"{__file__}: it is no folder", "--workdir")),
        (["anonymize", "--workdir", f"{__file__}/x"], (f"{__file__}: it is no folder",)),
        (["sweep", "--workdir", f"{__file__}/x", "--grid", "train.seed=1"], ("it is no folder",)),
        (
            ["sweep", "--workdir", "w", "--grid", "a", "--runner-options", "x"],
            ("'x' is no option",),
        ),
        (["evaluate", "--workdir", "w", "--split", "tset"], ("'tset' is unknown", "'test'")),
        (["attack", "--workdir", "w", "--split", "tset"], ("'tset' is unknown", "'test'")),
        (["attack", "--workdir", "w", "--attack", "ica"], ("attack 'ica' is unknown",)),
        (["attack", "--workdir", "w", "--attack"], ("--attack names none", "leave --attack out")),
        (["attack", "--workdir", "w", "--attack", "all", "iva"], ("attack 'all' is unknown",)),
        (["attack", "--workdir", "w", "--pictures", "a.jpg"], ("a.jpg does not end in .png",)),
        (["evaluate", "--workdir", __file__], ("is no work directory",)),
        (["attack", "--workdir", "w", "--steps", "0"], ("facemix: steps is 0", "greater than 0")),
        (["cost", "--json", "missing/x.json"], ("missing/x.json cannot be written", "--json")),
        (["key", "show", "--json", "."], ("it is a folder", "--json")),
        (["linearity", "--out", f"{__file__}/x"], ("cannot be written", "--out")),
        (["demo", "--out", f"{__file__}/x"], ("cannot be written", "--out")),
        (["attack", "--workdir", "w", "--pictures", "no/x.png"], ("no/x.png", "--pictures")),
        (
            ["attack", "--workdir", "w", "--pictures", "a.png", "--json", "./a.png"],
            ("--pictures and --json name the same file",),
        ),
        (["--tyro-print-completion", "fish"], ("'fish' is unknown", "zsh")),
        (["attack", "--workdir", "w", "--seed", str(2**64)], ("seed is 18446744073709551616",)),
        (["linearity", "--seed", "-1"], ("seed is -1", "between 0 and 4294967295")),
        (["linearity", "--group-size", "-1"], ("group_size is -1", "greater than 0")),
        (["linearity", "--group-size", "1"], ("group_size is 1", "2 or more")),
        (["linearity", "--family", "haa"], ("'haa' is unknown", "haar")),
        (["linearity", "--workdir", "w", "--cut", "5"], ("cut is 5", "that of --workdir")),
        (["linearity", "--data-dir", "d"], ("data_dir is 'd'", "drawn faces", "--data-dir")),
        (["train", *UNREAD, "--blur-size", "8"], ("blur_size is 8", "'facemix'", "out.")),
        (
            ["anonymize", *UNREAD, "--group-size", "4"],
            ("group_size is 4", "the anonymizer", "out."),
        ),
        (["sweep", *UNREAD, "--search", "train.seed=1", "--blur-size", "8"], ("blur_size is 8",)),
        (["cost", "--table1", "--network", "vgg16"], ("network is 'vgg16'", "--table1")),
        (["cost", "--table1", "--group-size", "4"], ("group_size is 4", "Leave --group-size")),
        (["cost", "--up-mbps", "0"], ("up_mbps is 0", "greater than 0")),
        (["cost", "--num-attributes", "-1"], ("num_attributes is -1", "greater than 0")),
        (["cost", "--num-classes", "0"], ("num_classes is 0", "greater than 0")),
        (["nonsense"], ("nonsense",)),
        ([], ("demo",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_2_and_says_what_to_do(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_unknown_split_is_wrong_usage(capsys, workdir):
    code, _, err = run(capsys, "evaluate", "--workdir", workdir, "--split", "tset")
    assert code == 2
    assert "'tset' is unknown" in err
    assert "'test'" in err


def test_nan_exits_1(capsys, tmp_path):
    code, _, err = run(
        capsys, "train", "--workdir", tmp_path / "w", *TRAIN, "--learning-rate", "1e38"
    )
    assert code == 1
    assert "learning rate is too high" in err


def test_faults_of_our_own_show_a_trace(capsys, monkeypatch):
    def broken(*args, **options):
        raise AssertionError("bug")

    monkeypatch.setattr("facemix_jax.costs.cost_report", broken)
    code, _, err = run(capsys, "cost")
    assert code == 1
    assert "Traceback" in err
    assert "fault of facemix" in err


@pytest.mark.parametrize(
    "command", ["demo", "train", "anonymize", "evaluate", "attack", "linearity", "cost"]
)
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: facemix {command}" in " ".join(out.split())


def test_brackets_and_narrow_terminals_lose_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    figure = attacks.Figure("error of the faces [dB]", -10.25, -20.5, -1.125, "nothing", -30.5, 0.0)
    output.emit(None, {}, commands_attack._table("facemix", [("inversion", figure)] * 2))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("[dB]") == 2
    assert shown.count("inversion") == 1
    for number in ("-30.500", "-20.500", "-10.250", "0.000", "-1.125", "9.125"):
        assert shown.count(number) >= 2


def test_what_every_attacker_knows_stands_once_below_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shared, own = ("knows " + "much and more of it " * 6 + end for end in ("[all]", "alone"))
    models = {"set_attributes": (shared, own), "robust": (shared, shared)}
    rows = [
        (name, attacks.Figure("guess", 0.0, 0.0, 1.0, model))
        for name, of_figures in models.items()
        for model in of_figures
    ]
    output.emit(None, {}, commands_attack._known(rows))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    assert words == f"set_attributes: {shared} {own} robust: {shared}"


def test_numbers_too_wide_for_the_terminal_keep_their_digits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    numbers = ["1,498,546,112", "47,135,588,352", "49,551,507,456"]
    output.emit(None, {}, output.table("network", ("a", "b", "c"), [("one", *numbers)]))
    lines = [line.split("│")[2:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert ["".join(parts).replace(" ", "") for parts in zip(*lines, strict=True)] == numbers


def test_notes_keep_brackets(capsys):
    """Paths and shapes have them; rich would take some for markup."""
    output.NOTES.print("left out: runs/[a]/[bold]x")
    assert "runs/[a]/[bold]x" in capsys.readouterr().err


def test_demo_writes_one_report_and_a_second_run_is_short(capsys, tmp_path, monkeypatch):
    data = DataConfig(image_size=(40, 36), train_examples=64, test_examples=64)
    train = TrainConfig(num_epochs=1, batch_size=16)
    configs = {
        name: demo.dataclasses.replace(
            config,
            data=data,
            train=train,
            model=demo.dataclasses.replace(config.model, width=4),
        )
        for name, config in demo.CONFIGS.items()
    }
    monkeypatch.setattr(demo, "CONFIGS", configs)
    monkeypatch.setattr(demo, "_DATA", data)
    for reused in ([], ["plain", "facemix"]):
        code, out, err = run(capsys, "demo", "--out", tmp_path / "d", "--json", "-")
        assert code == 0
        assert "not a cipher" in err
        result = json.loads(out)
        assert len(result["utility"]) == 4
        assert set(result["leakage"]) == {"cut 0", "cut 1"}
        assert result["reused_trainings"] == reused
        page = (tmp_path / "d" / "report.html").read_text()
        assert ("earlier call's training: plain, facemix" in page.replace("&#x27;", "'")) == bool(
            reused
        )
    assert page.count("<img") == 2
    for word in ("not a cipher", "no attack", "robust", "key advantage", "balanced"):
        assert word in page
    shown = output.figures_table("cut 1", {"robust": Figure("x", 0.9, 0.5, 1.0, "y")})
    first = {str(column.header): str(next(iter(column.cells))) for column in shown.columns}
    assert first == {
        "cut 1": "robust",
        "no attack": "0.500",
        "attacker": "0.900",
        "owner": "1.000",
        "key advantage": "0.100",
    }


def test_version_is_the_packages(capsys):
    code, out, _ = run(capsys, "--version")
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert code == 0
    assert f"version: {out.split()[1]}\n" in citation


def test_module_and_program_are_the_same():
    program = Path(sys.executable).with_name("facemix")
    if not program.exists():
        pytest.skip("the package is not installed, only importable")
    outputs = [
        subprocess.run(
            [*command, "cost", "--cut", "2"], capture_output=True, text=True, check=True
        ).stdout
        for command in ([sys.executable, "-m", "facemix_jax"], [program])
    ]
    assert outputs[0] == outputs[1]
    assert "275,011,008" in outputs[0]
