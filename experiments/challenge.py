"""A challenge: protected activations of hidden faces, a scorer, our own attack as a baseline."""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
import tyro
from challenge_files import (
    ABOUT,
    KNOWN,
    MIXTURES,
    NETWORK,
    PUBLIC,
    RULES,
    SUBMITTED,
    VERSION,
    flat,
    npz,
    public_target,
    read_public,
)
from challenge_scoring import MARGIN, Score, Secrets, keys_of, score
from scale import SCALES, Name

from facemix_jax import (
    _runtime,
    cli,
    data,
    defenses,
    fitting,
    keys,
    mixing,
    output,
    runs,
)
from facemix_jax._files import write_atomically
from facemix_jax._types import Array, HostArray, ImageSize, Variables
from facemix_jax._validate import UsageError, positive
from facemix_jax.attacks import grouping, robust
from facemix_jax.data import face_model, synthetic
from facemix_jax.defenses import DefenseConfig
from facemix_jax.defenses.noisy import NoisySecret
from facemix_jax.models import ModelConfig, SplitModel

_JOINT = 256
"""Rows up to which one ICA over all of them helps to regroup. On 128 rows of small maps it puts
all into their groups, and gradient directions alone 62%."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Make:
    """Draws faces nobody has seen, protects them, publishes all but the faces and the key.

    Command: ``python experiments/challenge.py make --public CHALLENGE --private HIDDEN.npz``. No
    files are needed: faces are drawn at every scale.

    Run time: about a minute at ``smoke`` on two cores, most of it training the network, beside
    ``private`` in a folder that a second call goes on with.

    Expected: a folder that may be published, and a file that may not.

    Attributes:
        public: folder for the challenge; must not exist, or be empty.
        private: file for the hidden truth and the secrets, readable by its owner only; outside of
            ``public``.
        scale: of the images and the network.
        cut: units on the edge; 0 mixes images.
        group_size: ``M``.
        groups: hidden groups.
        noise: standard deviation of noise on the mixtures, over theirs.
        tile: height, width of the tiles that maps are cut into, each group of tiles under a
            matrix of its own; None for whole maps.
        known_groups: groups of other faces that are published with their keys.
    """

    public: Path
    private: Path
    scale: Name = "smoke"
    cut: int = 1
    group_size: int = 8
    groups: int = 16
    noise: float = 0.0
    tile: tuple[int, int] | None = None
    known_groups: int = 4

    def __post_init__(self) -> None:
        """Checks sizes and places."""
        positive(groups=self.groups, known_groups=self.known_groups)
        for path in (self.private, self.training):
            if path.resolve().is_relative_to(self.public.resolve()):
                raise UsageError(
                    f"private is {self.private}, but {path} is inside of {self.public}, which is "
                    f"published. Keep the hidden truth elsewhere."
                )
        for name, folder in (("public", self.public), ("private", self.private.parent)):
            place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise UsageError(
                    f"{name} is {getattr(self, name)}, but {place} is no folder that can be "
                    f"written. Choose another {name}."
                )
        if self.private.exists() or (self.public.exists() and any(self.public.iterdir())):
            raise UsageError(
                f"{self.private} or {self.public} is there already. A challenge is never written "
                f"over another one: choose other names."
            )

    @property
    def training(self) -> Path:
        """Work directory of the network until all is written."""
        return self.private.with_name(f"{self.private.name}.run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """Our own attack on the published folder: regroups, then separates; no key, no hidden file.

    Command: ``python experiments/challenge.py baseline --public CHALLENGE --submission MINE.npz``

    Run time: about a minute on two cores.

    Expected: on plain FaceMix up to 256 rows, a mean matched |correlation| above .98.

    Attributes:
        public: folder of the challenge.
        submission: NPZ file to write.
        seed: of the attack.
    """

    public: Path
    submission: Path
    seed: int = 0


def make(config: Make) -> None:
    """Trains the network, draws the secrets, writes both sides."""
    chosen = SCALES[config.scale]
    wanted = runs.RunConfig(
        data=data.DataConfig(
            image_size=chosen.image_size,
            train_examples=chosen.train_examples,
            # The known groups are of these.
            test_examples=max(
                chosen.test_examples or synthetic.TEST_EXAMPLES,
                config.known_groups * config.group_size,
            ),
        ),
        model=ModelConfig(cut=config.cut, width=chosen.width, tile=config.tile),
        defense=DefenseConfig(group_size=config.group_size, noise=config.noise),
        train=chosen.train,
    )
    source = data.load_source(wanted.data)
    state = fitting.fit(wanted, config.training, source=source, show_progress=False)
    publish(config, runs.from_state(wanted, source, state))
    shutil.rmtree(config.training)


def publish(config: Make, run: runs.Run) -> None:
    """Draws the secrets and writes the public folder and the private file.

    Args:
        config: of the challenge.
        run: whose network is published; its test images are those of the known groups.

    Raises:
        OSError: a file cannot be written; none of either side is left.
    """
    count = config.groups * config.group_size
    drawn = draw_secrets(config, run.model.spec.tiles)
    faces = hidden_faces(drawn, run.source.image_size)
    truth = activations(run.model, run.variables, faces.images(np.arange(count)))
    mix_key = keys_of(drawn)
    secret: Any = mix_key
    if config.noise:
        secret = NoisySecret(mix_key, jax.random.wrap_key_data(jnp.asarray(drawn.noise)))
    sent = np.asarray(run.defense.protect(secret, jnp.asarray(truth)))

    hidden = npz(truth=truth, **drawn._asdict())
    rows = run.source.splits["test"][: config.known_groups * config.group_size]
    parts = {
        MIXTURES: npz(mixtures=sent),
        NETWORK: npz(**flat(run.variables)),
        KNOWN: npz(**known_groups(run, rows)),
    }
    about = {
        "version": VERSION,
        "commitment": hashlib.sha256(hidden).hexdigest(),
        "shape": list(sent.shape),
        "group_size": config.group_size,
        "image_size": list(run.source.image_size),
        "num_attributes": len(run.source.attribute_names),
        "network": dataclasses.asdict(run.config.model),
        "defense": dataclasses.asdict(run.config.defense),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
    }
    _write_private(config.private, hidden)
    try:
        config.public.mkdir(parents=True, exist_ok=True)
        for name, content in parts.items():
            write_atomically(config.public / name, content)
        write_atomically(config.public / RULES, rules(about))
        # Last: a folder without it is no challenge.
        write_atomically(config.public / ABOUT, json.dumps(about, indent=1) + "\n")
    except BaseException:  # so that the same command can be given again
        for path in (config.private, *(config.public / name for name in PUBLIC)):
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    print(f"publish {config.public}; keep {config.private}")


def draw_secrets(config: Make, tiles: int) -> Secrets:
    """Everything hidden, from the operating system: 32-bit seeds could be tried one by one."""
    count = config.groups * config.group_size
    root = keys.RootSecret(secrets.token_bytes(keys.SECRET_BYTES))
    request = secrets.token_bytes(keys.REQUEST_ID_BYTES)
    mix_key = keys.fresh_mix_key(
        root, request, tiles * config.groups, config.group_size, shuffle=True
    )
    words = np.frombuffer(secrets.token_bytes(4 * (4 * count + 2)), np.uint32)
    return Secrets(
        people=words[: 2 * count].reshape(count, 2),
        pictures=words[2 * count : 4 * count].reshape(count, 2),
        noise=words[4 * count :],
        matrix=np.asarray(mix_key.matrix),
        order=np.asarray(mix_key.order),
        nonce=np.frombuffer(secrets.token_bytes(32), np.uint8),
    )


def hidden_faces(drawn: Secrets, image_size: ImageSize) -> synthetic.Synthetic:
    """A picture of a person of its own for every row of the secrets."""

    @jax.jit
    @jax.vmap
    def sample(who: Array, which: Array) -> face_model.Face:
        person = face_model.sample_person(jax.random.wrap_key_data(who))
        return face_model.sample_face(jax.random.wrap_key_data(which), person)

    faces = jax.device_get(sample(jnp.asarray(drawn.people), jnp.asarray(drawn.pictures)))
    everyone = np.arange(len(drawn.people))
    return synthetic.Synthetic(image_size, faces, everyone.astype(np.int32), {"test": everyone})


def activations(model: SplitModel, variables: Variables, images: HostArray) -> HostArray:
    """What pre makes of uint8 ``[B, H, W, 3]``: float32 ``[R, h, w, C]``."""
    pre = jax.jit(model.pre.apply)
    return np.asarray(pre(variables["pre"], data.normalize(images)), np.float32)


def known_groups(run: runs.Run, rows: HostArray) -> dict[str, HostArray]:
    """Some groups with everything that is secret in the hidden ones; rows in order."""
    images = np.asarray(run.source.images(rows))
    z = activations(run.model, run.variables, images)
    secret = run.defense.init(jax.random.key(0), len(z), True)
    mix_key = defenses.mix_key_of(secret)
    assert mix_key is not None  # every defence here mixes
    return {
        "images": images,
        "activations": z,
        "mixtures": np.asarray(run.defense.protect(secret, jnp.asarray(z))),
        "matrix": np.asarray(mix_key.matrix),
    }


def baseline(config: Baseline) -> None:
    """Solves the challenge from its folder alone.

    Raises:
        UsageError: the folder is no challenge, or the submission would replace a file of it.
        DataError: a file of it was changed.
    """
    output.check_apart(
        {"--submission": config.submission}, (config.public / name for name in PUBLIC)
    )
    about, sent = read_public(config.public)
    target = public_target(config.public, about)
    group_key, choose_key, separate_key = jax.random.split(jax.random.key(config.seed), 3)
    size = about["group_size"]
    agreement = grouping.similarity(jnp.asarray(sent))
    if len(sent) <= _JOINT:
        agreement = agreement + grouping.joint_similarity(jnp.asarray(sent), rng_key=group_key)
    found = grouping.balanced_groups(agreement, size)
    together = mixing.group(jnp.asarray(sent[np.argsort(found, kind="stable")]), size)
    choice = robust.choose(report.without_main(target), choose_key)
    sources = np.asarray(choice.separate(together, rng_key=separate_key).sources)
    config.submission.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(config.submission, npz(**{SUBMITTED: sources.reshape(sent.shape)}))
    print(f"{config.submission}: separated by {choice.name}")


def _write_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise


def rules(about: Mapping[str, Any]) -> str:
    """README of the public folder."""
    rows, *shape = about["shape"]
    size, defense, network = about["group_size"], about["defense"], about["network"]
    noise = f", then Gaussian noise of {defense['noise']} standard deviations" * bool(
        defense["noise"]
    )
    tiles = f", cut into tiles of {network['tile']}" * (network["tile"] is not None)
    return f"""# Who is in the mixtures?

Faces were drawn, and a network's first part (cut {network["cut"]}) made activations of them{tiles}.
Groups of {size} were mixed by secret orthogonal matrices{noise}, and all {rows} rows shuffled. Get
the activations back.

- `{MIXTURES}`: `mixtures`, float32 `[{rows}, {", ".join(map(str, shape))}]`, as a cloud sees them.
- `{NETWORK}`: all weights of the network, by path. They are public; so is the algorithm of the
  defence, in `{ABOUT}`.
- `{KNOWN}`: other groups of other faces with their images, activations, mixtures and matrices, in
  order. Every group has a matrix of its own: these help to try a method out, and open nothing.
- `{ABOUT}`: sizes, checksums, and the SHA-256 of the hidden file, published before anybody
  submits.

Rules. Faces of your own come from `facemix_jax.data.synthetic`, as many as you like. The hidden
ones and the matrices come from the operating system's entropy. Anything may be used but the hidden
file.

Submit an NPZ file with one float array `{SUBMITTED}`, shaped as the mixtures: the activations, rows
in any order, each with either sign. The score is the mean |correlation| of the best one-to-one
match, beside it the share of rows at 0.9 or more and the squared error.

What is smooth correlates with whatever is smooth, so that faces of other people score well and can
lie above the owner of the matrices who filters nothing. Every side is therefore also scored
`filtered`, with the best of a few public linear filters (`facemix_jax.attacks.denoising`).
`chance`, `mean of known activations`, `other faces` (drawn ones, as many as there are rows) and
`no attack` (the mixtures as they are) are what needs no method; the owner of the matrices gets
`owner`. A submission is a finding only if it, filtered, lies more than {MARGIN} above the best of
what needs no method. Where not even the owner does, the noise has left nothing to find. After the
end the hidden file is published, and everybody can check it against the commitment.

Plain FaceMix falls: `challenge.py baseline` regroups the rows, separates them and scores close to
the owner. A defence is worth something where the owner is a finding and no submission comes near.
"""


def main(config: Make | Score | Baseline) -> None:
    """Runs the command."""
    if isinstance(config, Make):
        make(config)
    elif isinstance(config, Score):
        score(config)
    else:
        baseline(config)


if __name__ == "__main__":
    _runtime.configure()
    sys.exit(cli.guarded(lambda: main(tyro.cli(Make | Score | Baseline))))
