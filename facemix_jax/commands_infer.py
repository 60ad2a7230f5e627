"""``facemix infer``: pictures in, attributes out, through a cloud that sees mixtures only."""

import csv
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from facemix_jax import output
from facemix_jax._arguments import Folder
from facemix_jax._files import write_atomically
from facemix_jax._types import HostArray, ImageSize
from facemix_jax._validate import DataError, FacemixError, UsageError
from facemix_jax.data import decode, sheet
from facemix_jax.output import NOTES

if TYPE_CHECKING:
    from facemix_jax.serving.edge import Prediction, Timing

_PER_ROW = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infer:
    """The edge's side of split inference: predicts attributes of pictures through a cloud.

    Pictures and activations stay on this machine. Mixing is not a cipher: the cloud can undo it
    (facemix attack shows how far).

    Example: facemix infer --workdir runs/m8 --cloud localhost:50051 face1.jpg face2.jpg

    Example: facemix infer --workdir runs/m8 --cloud a.example:443 --cloud b.example:443
    --token token.txt --csv faces.csv --sheet faces.png --timing *.jpg
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """JPEG or PNG files; they are scaled to the network's size."""
    workdir: Folder
    """Of the training run that the cloud serves."""
    cloud: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """HOST:PORT of facemix serve; given several times, groups are spread over the clouds."""
    key: Annotated[str | None, tyro.conf.arg(metavar="FILE|keyring:NAME")] = None
    """File of the root secret, by default facemix/key in $XDG_CONFIG_HOME or ~/.config; or an entry
    of the system's keyring."""
    wire: Annotated[str | None, tyro.conf.arg(metavar="float32|bfloat16|int8")] = None
    """What mixtures travel as; by default what they were rounded to in training."""
    insecure: bool = False
    """Allow plain text to an address that is not loopback."""
    ca: Path | None = None
    """PEM file of the authority behind the clouds' certificates; by default the system's."""
    certificate: Path | None = None
    """PEM file of this client's certificate, for mutual TLS."""
    private_key: Path | None = None
    """PEM file of its key."""
    token: Path | None = None
    """File that holds a bearer token."""
    timeout: float = 30.0
    """Seconds that one attempt may take; attempts that fail are repeated for two minutes."""
    spot_checks: int = 0
    """Rows of each request that are compared with main computed here, to find a dishonest cloud."""
    timing: bool = False
    """Show where the time went."""
    csv: Path | None = None
    """Write probabilities as CSV to this path."""
    sheet: Path | None = None
    """Write the pictures with their predicted attributes to this PNG file."""
    json: str | None = None
    """Write probabilities as JSON to this path; - for standard output."""

    def run(self) -> None:
        """Runs the command."""
        # Imported here: only this command and facemix key need the packages of the extra.
        try:
            from facemix_jax import key_ring
            from facemix_jax.serving import edge
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{error.name} is not installed, which inference through a cloud needs. Install "
                f"the extra: pip install 'facemix-jax[serve]'"
            ) from None

        connection = edge.Connection(
            clouds=self.cloud,
            insecure=self.insecure,
            ca=self.ca,
            certificate=self.certificate,
            private_key=self.private_key,
            token=self.token,
        )
        config = edge.EdgeConfig(
            wire=self.wire, timeout_s=self.timeout, spot_checks=self.spot_checks
        )
        place = key_ring.place(self.key)
        self._check_paths(place.path)
        root = place.load()
        with edge.EdgeClient(self.workdir, root, connection, config, NOTES.print) as client:
            size, names = client.segments.spec.image_size, client.segments.attribute_names
            wire = self.wire or client.segments.wire
            pictures = np.stack([_read(path, size) for path in self.images])
            if self.timing:
                noise = np.random.default_rng(0).integers(0, 256, pictures.shape, np.uint8)
                client.infer(noise)  # compiles; the pictures themselves are sent once
            NOTES.print(f"{len(pictures)} pictures through {', '.join(self.cloud)} ...")
            found = client.infer(pictures)
        probabilities = _probabilities(found.logits)
        self._emit(found, probabilities, names, wire)
        if self.csv is not None:
            _write_csv(self.csv, self.images, probabilities, names)
        if self.sheet is not None:
            _draw(self.sheet, self.images, pictures, probabilities, names)
        _remark(found)

    def _check_paths(self, key: Path | None) -> None:
        """Raises ``UsageError`` for what is wrong with the paths, before any work."""
        if not self.images:
            raise UsageError("No picture is given. Name JPEG or PNG files.")
        for path in self.images:
            if not path.is_file():
                raise UsageError(f"{path} is no file. Give JPEG or PNG files.")
        output.check_file(self.csv, "--csv")
        output.check_png(self.sheet, "--sheet")
        output.check_apart(
            {"--csv": self.csv, "--sheet": self.sheet, "--json": self.json},
            (*self.images, key, self.token, self.ca, self.certificate, self.private_key),
        )

    def _emit(
        self, found: "Prediction", probabilities: HostArray, names: tuple[str, ...], wire: str
    ) -> None:
        result: dict[str, Any] = {
            "images": [
                {
                    "image": str(path),
                    "attributes": {n: round(float(p), 6) for n, p in zip(names, row, strict=True)},
                }
                for path, row in zip(self.images, probabilities, strict=True)
            ],
            "wire": wire,
            **{n: v for n, v in found._asdict().items() if n not in ("logits", "timing")},
        }
        rows = [
            (_shown(path), ", ".join(_present(row, names)) or "(none)")
            for path, row in zip(self.images, probabilities, strict=True)
        ]
        table = output.table("picture", ("attributes more likely than not",), rows)
        table.columns[1].justify = "left"
        tables = [table]
        if self.timing:
            result["seconds"] = dataclasses.asdict(found.timing)
            tables.append(_timing_table(found.timing))
        output.emit(self.json, result, *tables)


def _read(path: Path, size: ImageSize) -> HostArray:
    try:
        decode.check_bytes(path.stat().st_size, name=str(path))
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give another file.") from None
    return decode.rgb(content, size, name=str(path))


def _shown(path: Path) -> str:
    """A file's name; bytes of it that are no UTF-8 cannot be shown."""
    return os.fsencode(path.name).decode(errors="replace")


def _probabilities(logits: HostArray) -> HostArray:
    """Of class 1 of two, float64 ``[N, K]``, from logits ``[N, K, 2]``."""
    difference = logits[..., 1].astype(np.float64) - logits[..., 0]
    return 0.5 * (1 + np.tanh(0.5 * difference))  # the logistic function, without overflow


def _present(row: HostArray, names: tuple[str, ...]) -> list[str]:
    return [sheet.short_name(name) for name, p in zip(names, row, strict=True) if p > 0.5]


def _timing_table(timing: "Timing") -> Any:
    seconds = dataclasses.asdict(timing)
    total = sum(seconds.values())
    rows = [(n, f"{1e3 * s:.1f}", f"{s / total:.1%}") for n, s in seconds.items()]
    return output.table(
        "latency", ("ms", "share"), [*rows, ("sum over requests", f"{1e3 * total:.1f}", "")]
    )


def _write_csv(
    path: Path, images: tuple[Path, ...], probabilities: HostArray, names: tuple[str, ...]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *names])
    for image, row in zip(images, probabilities, strict=True):
        writer.writerow([image, *(f"{p:.6f}" for p in row)])
    try:
        # Names of files need not be UTF-8: they are written as they are.
        write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
    except OSError as error:
        raise FacemixError(
            f"The table cannot be written to {path}: {error}. Choose another --csv path."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Predicted:
    """A ``Source`` of pictures with predicted attributes, for the sheet."""

    pictures: HostArray
    attributes: HostArray
    attribute_names: tuple[str, ...]
    name: str = "predicted"

    @property
    def image_size(self) -> ImageSize:
        return self.pictures.shape[1], self.pictures.shape[2]

    @property
    def identities(self) -> HostArray:
        return np.arange(len(self.pictures), dtype=np.int32)

    @property
    def splits(self) -> Mapping[str, HostArray]:
        return {"all": np.arange(len(self.pictures))}

    def __len__(self) -> int:
        return len(self.pictures)

    def images(self, indices: HostArray) -> HostArray:
        return self.pictures[indices]


def _draw(
    path: Path,
    images: tuple[Path, ...],
    pictures: HostArray,
    probabilities: HostArray,
    names: tuple[str, ...],
) -> None:
    source = _Predicted(pictures, (probabilities > 0.5).astype(np.int8), names)
    columns = min(_PER_ROW, len(source))
    places = np.pad(np.arange(len(source)), (0, -len(source) % columns), constant_values=-1)
    drawn = sheet.contact_sheet(
        source,
        places.reshape(-1, columns),
        title=f"predicted through the cloud: {len(source)} pictures",
        captions=[_shown(image) for image in images],
    )
    sheet.save_png(path, drawn)
    NOTES.print(f"Sheet: {path}", soft_wrap=True)


def _remark(found: "Prediction") -> None:
    """Says what was done beside the pictures themselves."""
    if found.fillers:
        NOTES.print(
            f"{found.fillers} drawn pictures completed the last group: they are known to nobody "
            f"else, and no picture of yours was sent twice."
        )
    if found.repeated:
        NOTES.print(f"{found.repeated} pictures are equal to others and were sent once.")
    if found.retries:
        NOTES.print(f"{found.retries} attempts failed and were mixed anew.")
