"""What an edge loads of a work directory, and which it refuses."""

import dataclasses
import json

import pytest
from cloud_support import run_config, save_checkpoint
from edge_support import M

from facemix_jax._validate import UsageError
from facemix_jax.serving import segments


def test_work_directory_needs_no_images_and_gives_names(tmp_path):
    save_checkpoint(tmp_path)
    loaded = segments.load(tmp_path)
    assert loaded.attribute_names == ("attribute 1", "attribute 2", "attribute 3")
    assert loaded.main is None
    assert loaded.group_size == M


def test_names_are_those_of_training_wherever_its_images_are(tmp_path):
    save_checkpoint(tmp_path)
    (tmp_path / "images.json").write_text('{"attribute_names": ["Bald", "Male", "Young"]}')
    assert segments.load(tmp_path).attribute_names == ("Bald", "Male", "Young")


def test_runs_rounded_to_what_no_client_sends_are_refused(tmp_path):
    config = run_config()
    defense = dataclasses.replace(config.defense, wire="int8")
    save_checkpoint(tmp_path, config=dataclasses.replace(config, defense=defense))
    assert segments.load(tmp_path).wire == "int8"
    config = json.loads((tmp_path / "config.json").read_text())
    config["defense"]["wire"] = "int4"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"'int4', which no client sends.*Train with --wire int8"):
        segments.load(tmp_path)


@pytest.mark.parametrize("layer", [{"noise": 0.5}, {"decoys": 1}, {"blinding": 1.0}, {"clouds": 2}])
def test_runs_whose_layers_clients_do_not_speak_are_refused(tmp_path, layer):
    save_checkpoint(tmp_path)
    segments.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["defense"] |= layer
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="do not speak"):
        segments.load(tmp_path)
