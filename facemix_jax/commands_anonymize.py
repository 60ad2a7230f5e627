"""``facemix anonymize``: trains the face anonymizer of Table 2."""

import dataclasses

import tyro

from facemix_jax import anonymizing, data, output, runs, trials
from facemix_jax._arguments import Folder
from facemix_jax.anonymizing import AnonymizerConfig
from facemix_jax.commands import absolute
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.output import NOTES
from facemix_jax.run_files import check_not_own
from facemix_jax.runs import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anonymize:
    """Train a face anonymizer on the edge against an identifier (Ren et al., 2018).

    Evaluate and attack its work directory like any other.

    Example: facemix anonymize --workdir runs/anonymizer --dataset celeba --data-dir ~/celeba
    --image-size 109 89 --width 16 --num-epochs 3
    """

    workdir: Folder
    """Folder of the run; the same command goes on with an interrupted one."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = RunConfig(
        model=ModelConfig(network="anonymizer"), defense=DefenseConfig(defense="none")
    )
    anonymizer: tyro.conf.OmitArgPrefixes[AnonymizerConfig] = AnonymizerConfig()
    json: str | None = None
    """Write the result as JSON to this path; - for standard output."""

    def run(self) -> None:
        """Runs the command."""
        config = absolute(self.config)
        check_not_own(self.json, "--json", workdirs=[self.workdir])
        output.check_outside({"--json": self.json}, config.data.data_dir)
        anonymizing.check(config, self.workdir, config.data.image_size)
        source = data.load_source(config.data)
        trials.check_split(config, source, "test")
        anonymizing.fit(config, self.anonymizer, self.workdir, source=source, say=NOTES.print)
        result = trials.utilities(runs.load(self.workdir), "test")
        output.emit(self.json, result, output.utility_table(result))
        NOTES.print("What is sent is all that the cloud needs to attack: facemix attack.")
