"""What an edge loads of a work directory, and which it refuses."""

import json

import pytest
from cloud_support import save_checkpoint

from facemix_jax._validate import UsageError
from facemix_jax.serving import segments


@pytest.mark.parametrize("layer", [{"noise": 0.5}, {"decoys": 1}, {"blinding": 1.0}, {"clouds": 2}])
def test_runs_whose_layers_clients_do_not_speak_are_refused(tmp_path, layer):
    save_checkpoint(tmp_path)
    assert segments.load(tmp_path).group_size
    config = json.loads((tmp_path / "config.json").read_text())
    config["defense"] |= layer
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="do not speak"):
        segments.load(tmp_path)
