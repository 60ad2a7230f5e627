"""Work directories: what they are claimed for, kept from, and read as."""

import copy
import dataclasses
import json

import pytest
from fitting_support import config_of, fit_in

from facemix_jax import claims, cli, data, fitting, runs
from facemix_jax._files import write_atomically
from facemix_jax._validate import DataError, FacemixError, UsageError
from facemix_jax.checkpoint import CheckpointError
from facemix_jax.commands import absolute
from facemix_jax.data import DataConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax


def test_moved_images_are_the_same(tmp_path, tiny_source):
    def config(folder):
        return RunConfig(data=DataConfig(dataset="folder", data_dir=folder))

    images = runs.images_of(tiny_source, tiny_source.image_size)
    with claims.alone(tmp_path, config("here"), images=images):
        (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with claims.alone(tmp_path, config("there"), images=images):
        pass
    other = {**images, "labels": "0"}
    with pytest.raises(UsageError, match=r"images.labels is"):
        claims.check_claim(tmp_path, config("there"), images=other)
    (tmp_path / "images.json").write_text("{")
    with pytest.raises(FacemixError, match=r"images.json cannot be read"):
        claims.check_claim(tmp_path, config("there"), images=images)


def _trained_on(workdir, source):
    images = runs.images_of(source, source.image_size)
    with claims.alone(workdir, config_of(), images=images):
        pass
    return images


def test_a_run_is_loaded_with_the_attributes_that_it_was_trained_for(tmp_path, tiny_source):
    images = _trained_on(tmp_path, tiny_source)
    bright, even, coin = tiny_source.attribute_names
    other = copy.copy(tiny_source)
    other.attributes = 1 - tiny_source.attributes  # other people
    with pytest.raises(CheckpointError, match="Train first"):
        runs.load(tmp_path, source=other)
    for names, words in (
        ((even, bright, coin), r"attribute 1 is 'Bright' there and 'Even' here.*--data-dir"),
        ((bright, even), r"attribute 3 is 'Coin' there and 'missing' here"),
    ):
        other.attribute_names = names
        with pytest.raises(DataError, match=words):
            runs.load(tmp_path, source=other)
    del images["attribute_names"]  # as in runs from before they were kept
    (tmp_path / "images.json").write_text(json.dumps(images))
    with pytest.raises(CheckpointError, match="Train first"):
        runs.load(tmp_path, source=other)
    for names in (5, [5]):
        (tmp_path / "images.json").write_text(json.dumps({"attribute_names": names}))
        with pytest.raises(DataError, match=r"images.json is damaged: .*delete it"):
            runs.load(tmp_path, source=other)


def test_drawn_faces_are_not_taken_for_a_source_of_its_own(tmp_path, tiny_source, monkeypatch):
    _trained_on(tmp_path, tiny_source)
    with pytest.raises(CheckpointError, match="Train first"):
        runs.load(tmp_path, source=tiny_source)
    drawn = copy.copy(tiny_source)
    drawn.attributes = 1 - tiny_source.attributes
    monkeypatch.setattr(data, "load_source", lambda config: drawn)
    with pytest.raises(UsageError, match=r"images.labels is .*runs.load\(workdir, source=source\)"):
        runs.load(tmp_path)


def test_what_trained_nothing_takes_another_configuration(tmp_path):
    """A first step that fails, or a diverged run, says what to change: the same folder takes it."""
    first, second = config_of(), config_of(learning_rate=1e-4)
    for config in (first, second):
        with claims.alone(tmp_path, config, images={"training_images": 1}):
            pass
        assert runs.read_config(tmp_path) == config
    claims.claim(tmp_path, first)
    assert runs.read_config(tmp_path) == first
    for kept in ("checkpoints/3", "result.json"):
        (tmp_path / kept).mkdir(parents=True)
        for claim in (claims.check_claim, claims.claim):
            with pytest.raises(UsageError, match=r"train.learning_rate is 0.0005 there"):
                claim(tmp_path, second)
        (tmp_path / kept).rmdir()
    (tmp_path / "config.json").write_text("{}")  # another program's
    with pytest.raises(FacemixError, match="cannot be read"):
        claims.claim(tmp_path, first)


@pytest.mark.parametrize("kept", ["checkpoints/3", "result.json"])
def test_work_that_no_configuration_says_whose_is_not_taken_over(tmp_path, kept):
    (tmp_path / kept).mkdir(parents=True)
    for claim in (claims.check_claim, claims.claim):
        with pytest.raises(UsageError, match=r"no config.json that says whose. Restore it"):
            claim(tmp_path, config_of())
    assert not (tmp_path / "config.json").exists()


def test_train_and_anonymize_keep_out_of_each_others_folders(tmp_path):
    """Both train that network, but only one of them an identifier, too."""
    config = config_of()
    told = tmp_path / claims.ANONYMIZER
    with claims.alone(tmp_path, config, anonymizer=True):
        told.write_text("{}")
    with claims.alone(tmp_path, config):
        assert not told.exists(), "nothing was saved, so that it was train's from then on"
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with claims.alone(tmp_path, config):
        pass
    words = rf"{tmp_path} holds .*no anonymizer.json: 'facemix train' .*another --workdir"
    with pytest.raises(UsageError, match=words):
        claims.check_claim(tmp_path, config, anonymizer=True)
    with pytest.raises(UsageError, match=words), claims.alone(tmp_path, config, anonymizer=True):
        pass
    told.write_text("{}")
    claims.check_claim(tmp_path, config, anonymizer=True)
    for claim in (claims.check_claim, claims.claim):
        with pytest.raises(UsageError, match=rf"{tmp_path} holds .*'facemix anonymize'.*another"):
            claim(tmp_path, config)
    with pytest.raises(UsageError, match="'facemix anonymize'"), claims.alone(tmp_path, config):
        pass
    assert told.exists()


def test_places_are_kept_so_that_other_folders_can_use_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = DataConfig(dataset="folder", data_dir="faces", cache_dir="cache")
    kept = absolute(RunConfig(data=images)).data
    assert (kept.data_dir, kept.cache_dir) == (str(tmp_path / "faces"), str(tmp_path / "cache"))
    assert absolute(RunConfig()) == RunConfig()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cut 99", "cut is 99"),
        ("--image-size 20 20", "image_size is 20x20"),
        ("--family hadamard --group-size 6 --batch-size 12", "group_size is 6, but"),
        ("--defense blur --blur-size 40 --cut 0 --image-size 33 33", "blur_size is 40, but"),
        ("--scatter", "scatter deals images"),
        ("--blur-size 8", "blur_size is 8, but the defence is 'facemix', so that it has no effect"),
        ("--defense none --family gaussian", "family is 'gaussian', but the defence is 'none'"),
        ("--defense noise --group-size 4", "group_size is 4, but the defence is 'noise'"),
        ("--condition 50", "condition is 50.0, but the family is 'haar'"),
        ("--network vgg16 --stem signed", "stem 'signed' is unknown; there is 'pool'"),
        ("--negentropy-weight 1 --image-size 64 64 --tile 1 8", "maps of 1 x 8 positions"),
        ("--network vgg16 --statistics separate", "main has no BatchNorm behind cut 1 of 'vgg16'"),
        ("--norm none --statistics clean", "main has no BatchNorm"),
        ("--cut 9 --isometry 1", "main has no convolutions behind cut 9 of 'resnet18'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_images_are_read(
    tmp_path, monkeypatch, capsys, options, words
):
    def load_source(config):
        raise AssertionError("images are read")

    monkeypatch.setattr(data, "load_source", load_source)
    workdir = tmp_path / "run"
    assert cli.main(["train", "--workdir", str(workdir), *options.split()]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not workdir.exists()


def test_parts_that_do_not_fit_claim_nothing(tmp_path, tiny_source):
    """Images given by the caller may have another size than the configuration says."""
    blur = DefenseConfig(defense="blur", blur_size=37)
    config = dataclasses.replace(config_of(), model=ModelConfig(cut=0, width=4), defense=blur)
    with pytest.raises(UsageError, match="blur_size is 37"):
        fit_in(tmp_path / "run", tiny_source, config)
    assert not (tmp_path / "run").exists()
    runs.check_parts(config, (40, 37))


def test_options_that_have_an_effect_are_taken():
    train = TrainConfig(statistics="separate", isometry=0.1)
    runs.check_parts(RunConfig(train=train), (40, 36))
    train = TrainConfig(isometry=0.1)
    runs.check_parts(RunConfig(model=ModelConfig(network="vgg16"), train=train), (40, 36))


def test_config_survives_json(tmp_path):
    config = RunConfig(
        data=DataConfig(image_size=(64, 48), train_examples=10),
        defense=DefenseConfig(group_size=4),
        train=TrainConfig(statistics="separate"),
    )
    claims.claim(tmp_path, config)
    assert runs.read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting"),
        (b"\xc1\x00", "utf-8"),
        (b"{}", "it has no 'data'"),
        (json.dumps({"data": {}}).encode(), "it has no 'image_size'"),
        (b'{"data": {"image_size": [40, 3]}}', "image_width is 3"),
        (
            b'{"data": {"image_size": [40, 36]}, "model": {"network": "small"}}',
            "'small' is unknown; .*\\. If it is of your own, register it first. Otherwise it was",
        ),
    ],
)
def test_a_broken_config_is_explained(tmp_path, content, reason):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FacemixError, match=rf"config.json cannot be read: .*{reason}.*restore it"):
        runs.read_config(tmp_path)


def test_the_lock_outlives_a_replaced_configuration(tmp_path):
    """Two starts in a new directory: the second comes when the first has just claimed it."""
    mine, other = config_of(), config_of(seed=1)
    with claims.alone(tmp_path, mine):
        write_atomically(tmp_path / "config.json", (tmp_path / "config.json").read_text())
        for config in (mine, other):
            with (
                pytest.raises(FacemixError, match="Another process is training in"),
                claims.alone(tmp_path, config),
            ):
                pass
        claims.claim(tmp_path, mine)  # as a sweep does whose trial is in training
        with pytest.raises(FacemixError, match="Another process is training in"):
            claims.claim(tmp_path, other)
        assert runs.read_config(tmp_path) == mine
    with claims.alone(tmp_path, other):
        assert runs.read_config(tmp_path) == other


def test_loading_leaves_a_running_training_alone(tmp_path):
    """What Orbax has half written would be deleted as left behind by a kill."""
    config = RunConfig(
        data=DataConfig(image_size=(40, 36), train_examples=32, test_examples=8),
        model=ModelConfig(width=4),
        train=TrainConfig(batch_size=32, num_epochs=1),
    )
    fitting.fit(config, tmp_path, show_progress=False)
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (tmp_path / "images.json").unlink()  # to read a run, it need not be there
    assert runs.load(tmp_path).step == 1
    assert half.exists()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="Train first"):
        runs.load(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
