"""What errors about checkpoints say; training and resuming use the rest."""

from pathlib import Path

import pytest

from facemix_jax import checkpoint
from facemix_jax.checkpoint import CheckpointError


def test_the_reason_of_a_damaged_checkpoint_is_what_came_first():
    with (
        pytest.raises(CheckpointError, match=r"read: 8/main has no _METADATA\. Likely causes"),
        checkpoint._explained(Path("there")),
    ):
        raise ValueError("incompatible handler") from OSError("8/main has no _METADATA.\nmore")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("\n \nIt is damaged.\nmore"), "It is damaged."),
        (ValueError("They do not match:\nopt_state:\n    - Source: dict\nmore"),
         "They do not match: opt_state: - Source: dict."),
        (KeyError(" no 'main'"), "no 'main'."),
        (ValueError("They do not match:\n"), "They do not match."),
        (ValueError(" \n"), "ValueError."),
        (OSError(), "OSError."),
    ],
)  # fmt: skip
def test_the_reason_of_a_checkpoint_error_is_told_before_likely_causes(error, reason):
    with pytest.raises(CheckpointError) as told, checkpoint._explained(Path("there")):
        raise error
    causes = "Likely causes: (a) it was written with other options or by another command: give"
    assert f"written or read: {reason} {causes}" in str(told.value)
    assert str(told.value).index("(a) it was written") < str(told.value).index("delete the newest")
