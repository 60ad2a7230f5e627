"""``facemix export``: what runs on the edge, as files for a phone."""

import dataclasses
from typing import Annotated

import tyro

from facemix_jax import output
from facemix_jax._arguments import Folder
from facemix_jax._validate import UsageError
from facemix_jax.output import NOTES
from facemix_jax.run_files import check_not_own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write the edge's segments with the mixing as files that run without this library.

    protect.* turns pictures and a secret matrix into mixtures, finish.* the cloud's answer and the
    same matrix into logits. The matrix is drawn where they run; no key is in the files. Mixing is
    not a cipher: the cloud can undo it (facemix attack shows how far).

    Example: facemix export --workdir runs/m8 --out phone
    """

    workdir: Folder
    """Of the training run."""
    out: Folder
    """Folder for the files; it is made if missing, and an earlier export there is replaced."""
    format: Annotated[str, tyro.conf.arg(metavar="stablehlo|onnx|both")] = "both"
    """For JAX (StableHLO), for ONNX Runtime, or both."""
    json: str | None = None
    """Write the manifest as JSON to this path; - for standard output."""

    def run(self) -> None:
        """Runs the command."""
        # Imported here: only some commands need the packages of the extras.
        try:
            from facemix_jax import export
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{error.name} is not installed, which the export needs. Install the extra: pip "
                f"install 'facemix-jax[export]'"
            ) from None

        written = {f"{name} of --out": self.out / name for name in export.FILES}
        output.check_apart({**written, "--json": self.json}, [])
        check_not_own(self.out, "--out")
        manifest = export.write(self.workdir, self.out, self.format)
        rows = [
            (name, f"{facts['bytes']:,}", facts["sha256"][:16])
            for name, facts in manifest["files"].items()
        ]
        table = output.table(str(self.out), ("bytes", "SHA-256 (first 16)"), rows)
        output.emit(self.json, manifest, table)
        NOTES.print(
            f"Model {manifest['model_id']}, step {manifest['step']}, groups of "
            f"{manifest['group_size']}, sent as {manifest['wire']} in training. Draw a fresh "
            f"matrix for each group of each request.",
            soft_wrap=True,
        )
