"""Pretrained weights that a training starts from: which files are refused, and what is kept."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from cli_support import TRAIN, run

from facemix_jax import cli, commands, data, fitting
from facemix_jax.data import DataError

pytestmark = pytest.mark.library_promotes  # Optax


def test_unreadable_weights_say_how_to_write_them(capsys, tmp_path):
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    contents = {"missing.npz": None, "bad.npz": b"not a zip", "empty.npz": b""}
    for name, content in {**contents, "one_array.npy": file.getvalue()}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        command = ("train", "--workdir", tmp_path / "w", *TRAIN)
        code, _, err = run(capsys, *command, "--initial-weights", tmp_path / name)
        assert code == 1
        assert name in err
        assert "state_dict" in err
        assert not (tmp_path / "w").exists()


def test_damaged_weights_are_refused_whatever_their_reader_makes_of_them(tmp_path):
    file = io.BytesIO()
    np.savez_compressed(file, w=np.random.default_rng(0).normal(size=200))
    whole = bytearray(file.getvalue())
    version = whole.rindex(b"PK\x01\x02") + 6  # in the list of the archive's files
    for name, at, wrong in (("stream", 55, 0xFF), ("version", version, 120)):
        damaged = whole.copy()
        damaged[at] = wrong
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name} cannot be read as weights: \w.*savez"):
            commands.read_weights(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_weights_that_are_not_finite_as_networks_have_them_are_refused(tmp_path, value):
    np.savez(tmp_path / "w.npz", good=np.ones(3, int), bad=np.array([1, value]))
    with pytest.raises(
        DataError, match=r"w.npz cannot be used: bad holds numbers that are not finite"
    ):
        commands.read_weights(tmp_path / "w.npz")


def test_training_is_told_which_weights_it_starts_from(tmp_path, tiny_source, monkeypatch):
    def told(*args, initial_digest, **options):
        seen.append(initial_digest)
        raise DataError("it trains")

    seen = []
    monkeypatch.setattr(data, "load_source", lambda config: tiny_source)
    monkeypatch.setattr(fitting, "fit_together", told)
    monkeypatch.setattr(commands, "from_torch", lambda weights, variables, **options: variables)
    for value in (1, 2, 1):
        np.savez(tmp_path / "w.npz", weight=np.full(3, value))
        weights = ["--initial-weights", str(tmp_path / "w.npz")]
        assert cli.main(["train", "--workdir", str(tmp_path / "run"), *TRAIN, *weights]) == 1
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize("value", [jnp.ones(3, jnp.bfloat16), np.array("1"), np.ones(3, complex)])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, value):
    np.savez(tmp_path / "w.npz", good=np.ones(3, bool), bad=value)
    with pytest.raises(
        DataError, match=r"w.npz cannot be used: bad is .*no real numbers. Take v.float"
    ):
        commands.read_weights(tmp_path / "w.npz")


def test_weights_of_another_network_are_refused_before_images_are_read(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(data, "load_source", lambda config: pytest.fail("it reads images"))
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.zeros((64, 3, 7, 7))})
    command = ("train", "--workdir", tmp_path / "run", *TRAIN)
    code, _, err = run(capsys, *command, "--initial-weights", tmp_path / "w.npz")
    assert code == 2
    assert "layer1.0" in err
    assert not (tmp_path / "run").exists()
