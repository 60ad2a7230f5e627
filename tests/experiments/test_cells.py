"""Results files: which cells count as measured, and which a later call measures again."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import anonymizer_weights
import figure4
import frontier_summary
import gaussian_codes
import measuring
import numpy as np
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
from data.layouts import noisy_jpeg, write_celeba
from PIL import Image

from facemix_jax import data, results
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


NO_RESULTS = {
    "text": "a letter",
    "a list": "[1]",
    "half": '{"cells": [',
    "other JSON": '{"precious": [1, 2], "device": "x"}',
    "no name": '{"cells": [], "provenance": {}, "config": {}}',
    "no cells": '{"name": "test_cells", "cells": null, "provenance": {}, "config": {}}',
    "words": '{"name": "test_cells", "cells": ["x"], "provenance": {}, "config": {}}',
    "no device": '{"name": "test_cells", "cells": [{"a": 1}], "provenance": {}, "config": {}}',
    "images": '{"name": "test_cells", "cells": [], "provenance": {"images": 1}, "config": {}}',
}


@pytest.mark.parametrize("content", NO_RESULTS.values(), ids=NO_RESULTS)
def test_a_file_of_another_kind_is_not_replaced(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=r"x\.json is there .*--output"):
        cells_in(tmp_path)
    assert (tmp_path / "x.json").read_text() == content


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder\. Give a file as --output"):
        report.Cells(tmp_path, Config())


@dataclasses.dataclass(frozen=True)
class Later:
    """``Config`` with options that came later."""

    rows: tuple[str, ...]
    scale: str = "cpu"
    flip: bool = False
    sizes: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))
    place: Path = Path("here")
    cache_dir: str | None = None


def test_options_that_a_file_does_not_name_were_at_their_defaults(tmp_path):
    cells_in(tmp_path).add({"row": "a"})
    output, before = tmp_path / "x.json", (tmp_path / "x.json").read_text()
    for changed in ({"flip": True}, {"sizes": (1, 3)}, {"scale": "gpu"}):
        (option,) = changed
        with pytest.raises(UsageError, match=f"was begun with {option} .*, but {option} is"):
            report.Cells(output, Later(("a",), **changed))
    assert output.read_text() == before
    for anywhere in ({}, {"place": Path("there"), "cache_dir": "there"}):
        assert report.Cells(output, Later(("a",), **anywhere)).has(row="a")
    assert report.Cells(output, Later(("a",), flip=True), chooses=("flip",)).has(row="a")


def test_cells_of_other_images_are_not_taken_over(tmp_path):
    output = tmp_path / "x.json"
    for name, of in (("a", [0, 0, 2]), ("b", [0, 2, 2])):
        write_celeba(tmp_path / name, ("Male", "Young"), of)
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copy)

    def cells(name: str | None) -> report.Cells:
        images = report.celeba_images(name and str(tmp_path / name))
        return report.Cells(output, Config(), images=images)

    first = cells("a")
    other = cells("b")
    first.add({"row": "a"})
    before = output.read_text()
    with pytest.raises(UsageError, match=r"begun with other images .*'train': 2.*'train': 1"):
        cells("b")
    with pytest.raises(UsageError, match="begun with other images"):
        other.add({"row": "b"})
    assert output.read_text() == before
    cells("copy").add({"row": "c"})
    cells(None).add({"row": "d"})
    assert [cell["row"] for cell in cells("a").cells] == ["a", "c", "d"]
    # The control: older files do not say, and a call that adds nothing does not, either.
    stored = json.loads(output.read_text())
    del stored["provenance"]["images"]
    output.write_text(json.dumps(stored))
    cells("b").save()
    assert "images" not in json.loads(output.read_text())["provenance"]
    cells("a").add({"row": "e"})
    assert json.loads(output.read_text())["provenance"]["images"]["data"]["train"] == 2


def test_images_of_a_folder_are_told_by_pictures_and_labels(tmp_path):
    found = []
    for name, picture, names in (
        ("a", None, ("Male", "Young")),
        ("b", lambda i: noisy_jpeg(np.random.default_rng(i)), ("Male", "Young")),
        ("c", None, ("Male", "Old")),
    ):
        write_celeba(tmp_path / name, names, [0, 1, 2], picture)
        found.append(report.celeba_images(str(tmp_path / name))["data"])
    assert len({each.pop("digest") for each in found}) == 3
    assert found == [{"train": 1, "valid": 1, "test": 1}] * 3
    assert report.images_of(data.DataConfig()) == {}, "drawn"


CELEBA = (
    *("table2", "figure4", "training_length", "anonymizer_weights", "accuracy_cpu", "accuracy_gpu"),
    *("other_systems", "variants", "frontier", "linearity", "linearity_aids", "gaussian_codes"),
    *("regroup", "separation_real", "separation_variants"),
)
LFWA = ("table3", "between_scales")


@pytest.mark.parametrize("name", [*CELEBA, *LFWA])
def test_scripts_say_which_images_they_measure(name, tmp_path, monkeypatch, tiny_source):
    class StartedError(Exception):
        pass

    def started(*arguments, images, **options):
        raise StartedError(images)

    write_celeba(tmp_path / "data", ("Male", "Young"), [0, 1, 2])
    monkeypatch.setattr(report, "Cells", started)
    monkeypatch.setattr(data, "load_source", lambda config: tiny_source)
    script = importlib.import_module(name)
    if name in LFWA:
        files = tmp_path / "data"
        (files / "img_align_celeba.zip").rename(files / "images.zip")
        lines = ["file,identity,split,person,imagenum,male_human,smile_human,Male"]
        lines += ["000001.jpg,1,train,a,1,0,0,1", "000003.jpg,2,test,b,1,0,0,0"]
        (files / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(StartedError) as found:
        script.main(script.Config(data_dir=str(tmp_path / "data")))
    (images,) = found.value.args
    counts = {split: count for split, count in images["data"].items() if count}
    digest = counts.pop("digest")
    assert len(digest) == 16
    assert counts == {"train": 1, "test": 1} | ({} if name in LFWA else {"valid": 1})


def test_a_name_says_the_data_set_and_older_files_are_continued(tmp_path):
    smoke, real = scales.SCALES["smoke"], scales.SCALES["cpu"]
    assert places.named("length", "lfwa", real, "cpu") == "length on LFWA, scale cpu"
    assert places.named("length", "lfwa", smoke, "smoke") == "length, scale smoke"
    output = tmp_path / "x.json"
    report.Cells(output, Config(), name="length, scale cpu").add({"row": "a"})
    now = {"name": "length on LFWA, scale cpu", "formerly": "length, scale cpu"}
    cells = report.Cells(output, Config(), **now)
    assert cells.has(row="a")
    cells.save()
    assert results.load(output).name == "length on LFWA, scale cpu"
    assert report.Cells(output, Config(), **now).has(row="a")


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
