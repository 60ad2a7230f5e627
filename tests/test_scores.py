"""Which attack a run's scores call the strongest, and what they call measured."""

import dataclasses
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from facemix_jax import attacks, defenses, fitting, run_tables, runs, scores
from facemix_jax.data import DataConfig, normalize
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig, resnet18
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax

CONFIG = RunConfig(
    data=DataConfig(image_size=(40, 36), train_examples=64, test_examples=32),
    model=ModelConfig(width=4),
    train=TrainConfig(num_epochs=1, batch_size=16, log_every=1),
)


def test_figures_without_an_attack_are_not_called_measured(tmp_path, monkeypatch):
    stored = {"attack": "x", "floor": 1.0, "value": 1.0, "owner": 1.0, "key_advantage": 0.0}
    plain = dataclasses.replace(CONFIG, defense=DefenseConfig(defense="none"))
    for config, mark in ((plain, "derived"), (CONFIG, "measured")):
        monkeypatch.setattr(runs, "read_config", Mock(return_value=config))
        members = [run_tables.Scored(tmp_path, {"strongest": stored})]
        cells = {column.name: read(members) for column, read in run_tables._COLUMNS[6:]}
        assert {value.mark for cell in cells.values() for value in cell} == {mark}
        assert {"no attack", "strongest attack", "owner", "key advantage"} <= set(cells)


@pytest.mark.slow
def test_without_a_key_what_undoes_the_perturbation_is_the_strongest(tmp_path):
    config = dataclasses.replace(
        CONFIG, model=ModelConfig(width=4, cut=0), defense=DefenseConfig(defense="noise")
    )
    fitting.fit(config, tmp_path, show_progress=False)
    found = scores.scores(tmp_path, split="test")
    assert found["strongest"]["attack"] in ("restoration", "pix2pix", "ridge")
    assert found["strongest"]["value"] == found["strongest"]["owner"]
    assert found["faces"]["name"].startswith("minus mean squared error")
    assert found["faces"]["value"] <= found["faces"]["strongest"] == found["faces"]["owner"]


def test_without_a_key_faces_count_as_activations_and_restored_images_as_faces(tiny_source):
    model = resnet18(cut=0, image_size=tiny_source.image_size, num_attributes=3, width=4)
    target = attacks.Target(
        model=model,
        defense=defenses.build(DefenseConfig(defense="noise")),
        variables=model.init(jax.random.key(0)),
        source=tiny_source,
    )
    recording = attacks.record(target, attacks.recorded_rows(target, 4), rng_key=jax.random.key(1))
    figure = attacks.Figure("faces", 0.0, 0.0, 0.0, "")
    drawn = attacks.Result((figure,), recording.images / np.float32(255))
    run = Mock(model=model, config=Mock(model=Mock(cut=0)))
    _, (_, whole) = scores._figures(run, Mock(results={"pix2pix": drawn}, recording=recording))
    assert whole.value == pytest.approx(1, abs=1e-5)  # the very images were drawn
    assert 0 < whole.floor < 0.99

    drawn = drawn._replace(figures=(figure._replace(value=-0.5, owner=-0.5),))
    restored = Mock(recovered=normalize(recording.images))
    found = Mock(results={"pix2pix": drawn, "restoration": restored}, recording=recording)
    faces = scores._faces(run, found)
    assert faces["value"] == -0.5
    assert faces["strongest"] == faces["owner"] == pytest.approx(0, abs=1e-6)
    columns = {column.name: column for column, _ in run_tables._FACES}
    assert columns["Pix2Pix"].strongest == "strongest"
    run.config.model.cut = 1  # what is restored are activations
    assert scores._faces(run, found)["strongest"] == -0.5
