"""Results files: which cells count as measured, and which a later call measures again."""

import dataclasses
import json
from pathlib import Path

import anonymizer_weights
import figure4
import frontier_summary
import gaussian_codes
import measuring
import other_systems
import persons
import places
import pytest
import report
import reproduce
import scale as scales
import summaries
import systems
import table3
from PIL import Image

from facemix_jax import results
from facemix_jax._validate import DataError, UsageError
from facemix_jax.runs import Run, RunConfig


@dataclasses.dataclass(frozen=True)
class Config:
    scale: str = "cpu"


def cells_in(folder: Path) -> report.Cells:
    return report.Cells(folder / "x.json", Config())


def test_a_cell_of_another_network_is_refused(tmp_path):
    cells_in(tmp_path).add({"attack": "pix2pix", "run_hash": "one"})
    cells = cells_in(tmp_path)
    assert cells.has("one", attack="pix2pix")
    assert not cells.has("two", attack="identity")
    with pytest.raises(
        UsageError, match=r"x\.json holds .*pix2pix.* network, one, but this .* two"
    ):
        cells.has("two", attack="pix2pix")


@pytest.mark.parametrize("content", ["a letter", "[1]", '{"cells": ['])
def test_a_file_of_another_kind_is_not_replaced(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=r"x\.json is there .*--output"):
        cells_in(tmp_path)
    assert (tmp_path / "x.json").read_text() == content


def test_results_of_another_script_are_not_taken_over(tmp_path):
    output = tmp_path / "x.json"
    report.Cells(output, Config(), name="table2, scale cpu").add({"row": "a", "value": 1})
    before = output.read_text()
    for name in ("table3, scale cpu", "table2, scale gpu", None):
        with pytest.raises(UsageError, match=r"x\.json holds results of 'table2, scale cpu', but"):
            report.Cells(output, Config(), name=name)
    assert output.read_text() == before
    assert report.Cells(output, Config(), name="table2, scale cpu").has(row="a")


def test_scripts_without_a_name_are_told_by_their_files(tmp_path):
    cells_in(tmp_path).add({"row": "a"})
    output = tmp_path / "x.json"
    assert results.load(output).name == "test_cells"
    # As they were once named: after their output.
    output.write_text(output.read_text().replace('"test_cells"', '"test_cells_cpu"'))
    assert cells_in(tmp_path).has(row="a")
    output.write_text(output.read_text().replace('"test_cells_cpu"', '"test_cells_too"'))
    with pytest.raises(UsageError, match="but this is 'test_cells'"):
        cells_in(tmp_path)


def test_what_goes_wrong_in_a_script_is_said_in_a_paragraph(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["table3.py", "--rows", "nobody's"])
    with pytest.raises(SystemExit) as stopped:
        report.script(table3.main, table3.Config)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "nobody's" in said
    assert "Traceback" not in said


def test_a_run_is_the_same_wherever_its_images_lie():
    def run(step: int = 8, **data) -> Run:
        config = RunConfig()
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
        return Run(config, None, None, None, {}, step)

    same = {report.run_hash(run()), report.run_hash(run(cache_dir="elsewhere"))}
    assert len(same) == 1
    assert not same & {report.run_hash(run(step=9)), report.run_hash(run(image_size=(64, 48)))}


def test_a_cell_takes_the_place_of_those_it_describes(tmp_path):
    cells = cells_in(tmp_path)
    for row in ("a", "b", "a"):
        cells.add({"row": row, "value": 1})
    cells.add({"row": "a", "value": 2}, instead_of={"row": "a"})
    assert [(c["row"], c["value"]) for c in cells_in(tmp_path).cells] == [("b", 1), ("a", 2)]


def test_a_file_names_the_devices_that_measured_its_cells(tmp_path, monkeypatch):
    def on(device):
        monkeypatch.setattr(report, "provenance", lambda: {"device": device, "commit": None})
        return cells_in(tmp_path)

    def named():
        return results.load(tmp_path / "x.json").provenance["device"]

    on("GPU").add({"row": "a"})
    on("CPU").save()
    assert named() == "GPU", "what measured nothing is not named"
    on("CPU").add({"row": "b"})
    assert named() == "CPU, GPU"
    assert [c["device"] for c in cells_in(tmp_path).cells] == ["GPU", "CPU"]
    stored = json.loads((tmp_path / "x.json").read_text())
    for cell in stored["cells"]:
        del cell["device"]
    (tmp_path / "x.json").write_text(json.dumps({**stored, "provenance": {"device": "older"}}))
    on("CPU").add({"row": "c"})
    assert named() == "CPU, older"


def test_a_cell_that_another_process_measured_meanwhile_is_not_added_again(tmp_path):
    calls = [cells_in(tmp_path), cells_in(tmp_path)]
    for cells in calls:
        assert not cells.has(row="a", seed=0)
        assert not cells.has(row="a", seed=1)
    for value, cells in enumerate(calls):
        cells.add({"row": "a", "seed": 0, "value": value})
    calls[1].add({"row": "a", "seed": 1, "value": 2})
    found = [(c["seed"], c["value"]) for c in cells_in(tmp_path).cells]
    assert found == [(0, 0), (1, 2)]


PLACE = places.Place(
    dataset="celeba", data_dir="C", cache_dir=None, identity_dir=None, workdirs=Path("runs")
)


def test_persons_are_measured_by_the_call_that_has_them(tmp_path, monkeypatch):
    parts = ("attributes", "identity")
    monkeypatch.setattr(measuring, "trained", lambda *arguments: None)
    for part in parts:
        monkeypatch.setitem(measuring.PARTS, part, lambda *arguments: {"value": 0.5})
    rows = {systems.CLOUD: systems.SYSTEMS[systems.CLOUD]}
    for place, expected in (
        (PLACE, ["attributes"]),
        (dataclasses.replace(PLACE, identity_dir="P"), ["attributes", "identity"]),
    ):
        cells = cells_in(tmp_path)
        measuring.measure(cells, rows, parts, scales.SCALES["cpu"], place, (0,))
        assert [cell["part"] for cell in cells.cells] == expected


def test_people_that_are_not_there_are_named_before_anything_is_trained(tmp_path):
    runs, missing = tmp_path / "runs", tmp_path / "none"
    place = dataclasses.replace(PLACE, identity_dir=str(missing), workdirs=runs)
    system = systems.SYSTEMS[systems.CLOUD]
    with pytest.raises(DataError, match=rf"{missing}/labels\.csv cannot be read"):
        measuring.trained(systems.CLOUD, system, scales.SCALES["smoke"], place, 0)
    assert not runs.exists()


def test_reproducing_hands_the_persons_to_every_script_that_wants_them(tmp_path):
    config = reproduce.Config(out=tmp_path, celeba="C", lfwa="L", people="P")
    for name, words in reproduce.commands(config).items():
        source = Path(words[1]).read_text()
        assert ("--identity-dir=P" in words) == ("identity_dir:" in source), name


def test_where_nothing_is_hidden_no_attack_was_measured():
    plain = {"value": 1.0, "floor": 1.0, "owner": 1.0, "attack": "none needed"}
    noised = {"value": 0.9, "floor": 0.5, "owner": 0.9, "attack": "restoration"}
    for found, mark in ((plain, "derived"), (noised, "measured")):
        cell = {"row": systems.CLOUD, "part": "separation", "seed": 0, **found}
        shown = summaries.activations([cell], systems.CLOUD)
        assert [value.mark for (value,) in shown] == [mark] * 3
        values = other_systems.separation({"separation": found})
        assert [report.measured(value)[0].mark for value in values] == [mark] * 3


def test_figure4_shows_all_cells_that_the_file_holds():
    cells = [
        {"row": f"FaceMix, M = {m}, N_pre = {cut}", "part": "utility", "seed": 0}
        | {"test_accuracy": 0.8}
        for m, cut in ((16, 1), (2, 1), (8, 3), (8, 1))
    ]
    (table,), (by_size, by_cut) = summaries.figure4(cells, scales.SCALES["cpu"])
    assert by_size.curves[0].x == (2, 8, 16)
    assert len(by_cut.curves[0].x) == 2
    assert len(table.rows) == 4
    with pytest.raises(UsageError, match="cut '4' is unknown"):
        figure4.main(figure4.Config(scale="smoke", cuts=(4,)))


def test_an_attack_below_no_attack_is_not_the_strongest():
    what = {"training": "t", "map": "whole", "group_size": 8, "noise": 0.5, "seed": 0}
    for reached, best in ((0.5, 0.6), (0.7, 0.7)):
        figure = {"value": reached, "floor": 0.6, "owner": 0.9}
        cells = [{**what, "attack": "gradient_ica", "figures": [figure]}]
        table = gaussian_codes.table(cells, gaussian_codes.Config())
        shown = dict(zip([c.name for c in table.columns], table.rows[0].cells, strict=True))
        assert shown["strongest"][0].value == best
        assert shown["key advantage"][0].value == pytest.approx(0.9 - best)


def test_a_learned_attacker_stands_beside_the_best_of_its_question():
    figure = {"name": "persons", "chance": 0.01, "floor": 0.02, "owner": 0.4}
    cells = [
        {"variant": "v", "attack": attack, "seed": 0, "figures": [{**figure, "value": value}]}
        for attack, value in (("set_identity", 0.23), ("membership", 0.35))
    ]
    table = frontier_summary.learned(cells, ["v"])
    names = [column.name for column in table.columns]
    assert table.columns[names.index("attacker")].strongest == "strongest"
    for row in table.rows:
        assert row.cells[names.index("strongest")][0].value == 0.35
    assert len(table.rows) == 2


def test_pictures_of_people_are_read_as_any_table_is(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    # A BOM, a column ``image``, folders in names, and one row without attributes.
    lines = ["\ufeffimage,identity,partition,dlib_dist,Male"]
    for i in range(6):
        Image.new("L", (16, 16), 40 * i).save(tmp_path / f"images/a/{i}.png")
        male = "" if i == 1 else i % 2
        lines.append(f"images/a/{i}.png,{i // 2},{i // 3},{('0.3', '', '0.7')[i % 3]},{male}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    source = persons.people(str(tmp_path), None, (16, 16))
    kept = {s: [source.file_names[i] for i in rows] for s, rows in source.splits.items()}
    assert kept == {"train": ["a/0.png"], "valid": ["a/3.png", "a/4.png"], "test": []}


def test_other_weights_of_the_anonymizer_stand_in_their_order():
    cells = [
        {"row": anonymizer_weights.label(w), "part": part, "seed": seed, **found}
        for w, accuracy in ((0.3, 0.86), (0.03, 0.87))
        for part, found in (
            ("utility", {"test_accuracy": accuracy}),
            ("identity", {"strongest": w}),
        )
        for seed in (0, 1)
    ]
    (table,) = anonymizer_weights.tables(cells, scales.SCALES["cpu"])
    assert [row.label for row in table.rows] == ["adversary weight 0.03", "adversary weight 0.3"]
    accuracy, persons, attributes = table.rows[0].cells
    assert (accuracy[0].value, persons[0].value, attributes) == (0.87, 0.03, ())
    assert (accuracy[0].seeds, accuracy[0].mark) == (2, "measured")
