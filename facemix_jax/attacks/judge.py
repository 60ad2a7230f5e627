"""An independent judge: does a pretrained public face recogniser know the person again?

dlib's recogniser (King 2017) was trained on three million faces that have nothing to do with this
project. It maps a face to 128 numbers; distances under 0.6 mean the same person. Its weights come
with the package ``face_recognition_models``. Both are the optional extra ``judge``.

Faces are cut out where the original shows one: scoring grants reconstructions the alignment.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from facemix_jax import _validate
from facemix_jax._types import HostArray, RngKey
from facemix_jax.attacks.base import Attack, AttackConfig, Figure, Recording, Result, Target
from facemix_jax.attacks.inversion import THREAT_MODEL, invert_recording

THRESHOLD = 0.6
"""Of the distance, by dlib's authors."""

Recogniser: TypeAlias = Callable[[HostArray, HostArray], HostArray]
"""``(images, originals) -> embeddings``: uint8 ``[B, H, W, 3]`` each, to float64 ``[B, D]``; faces
are cut out of ``images`` where ``originals`` show them."""

_MODULES = ("dlib", "face_recognition_models")
_REMEDY = "Install the extra: pip install 'facemix-jax[judge]'."

_FACE = (0.26, 0.39, 0.76, 0.81)
"""Left, top, right, bottom of the face in CelebA's alignment, in widths and heights: where the
detector finds none in the original."""

_SMALLEST_SIDE = 200
"""Pixels; smaller images are enlarged before detection, in whole steps."""

_MOST_IMAGES = 64
"""An embedding takes a tenth of a second on a CPU core, and there are five for each image."""


class Verdict(NamedTuple):
    """What the recogniser says of reconstructions.

    Attributes:
        distance: float64 ``[B]``, to the original's embedding.
        same_person: share of reconstructions nearer than ``THRESHOLD`` to their original.
        rank1_group: share that are nearer to their original than to the others of its group.
        rank1_gallery: share that are nearer to their original than to every other image.
    """

    distance: HostArray
    same_person: float
    rank1_group: float
    rank1_gallery: float


def compare(
    embeddings: HostArray, originals: HostArray, gallery: HostArray, *, group_size: int
) -> Verdict:
    """Scores embeddings of reconstructions.

    Args:
        embeddings: ``[B, D]``, of reconstructions.
        originals: ``[B, D]``, of the true images in the same order.
        gallery: ``[N, D]``, of other images; the originals belong to the gallery as well.
        group_size: ``M``, which divides ``B``: consecutive rows form a group.

    Raises:
        UsageError: shapes that do not belong together.
    """
    if embeddings.shape != originals.shape or gallery.shape[1:] != originals.shape[1:]:
        raise _validate.UsageError(
            f"embeddings have shape {embeddings.shape}, originals {originals.shape} and the "
            f"gallery {gallery.shape}, but must be [B, D], [B, D] and [N, D]. Embed all of them "
            f"with one recogniser."
        )
    _validate.divides(group_size, divisor_name="group_size", embeddings=len(embeddings))
    everyone = np.concatenate([originals, gallery])
    distances = np.linalg.norm(embeddings[:, None] - everyone[None], axis=2)
    rows = np.arange(len(originals))
    own = distances[rows, rows]
    same_group = rows[:, None] // group_size == np.arange(len(everyone)) // group_size
    same_group[:, len(rows) :] = False
    nearest_in_group = np.where(same_group, distances, np.inf).min(1)
    return Verdict(
        own,
        float((own < THRESHOLD).mean()),
        float((own <= nearest_in_group).mean()),
        float((own <= distances.min(1)).mean()),
    )


def dlib_recogniser() -> Recogniser:
    """Loads dlib's recogniser.

    Raises:
        UsageError: the extra ``judge`` is not installed.
    """
    if _missing():
        raise _validate.UsageError(f"The judge needs {' and '.join(_missing())}. {_REMEDY}")
    import dlib

    folder = _model_folder()
    detect = dlib.get_frontal_face_detector()
    landmarks = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(
        str(folder / "dlib_face_recognition_resnet_model_v1.dat")
    )

    def chip(image: HostArray, original: HostArray) -> HostArray:
        image, original = _enlarged(image), _enlarged(original)
        height, width = original.shape[:2]
        found = list(detect(original))
        box = [round(f * side) for f, side in zip(_FACE, (width, height) * 2, strict=True)]
        face = max(found, key=lambda r: r.area()) if found else dlib.rectangle(*box)
        return dlib.get_face_chip(image, landmarks(original, face), 150, 0.25)

    def embed(images: HostArray, originals: HostArray) -> HostArray:
        chips = [chip(i, o) for i, o in zip(images, originals, strict=True)]
        return np.asarray(network.compute_face_descriptor(chips), np.float64)

    return embed


def _missing() -> list[str]:
    return [name for name in _MODULES if importlib.util.find_spec(name) is None]


def _model_folder() -> Path:
    # Found, not imported: the package's own code needs setuptools' pkg_resources, which is gone.
    spec = importlib.util.find_spec("face_recognition_models")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "models"


def _enlarged(image: HostArray) -> HostArray:
    """Bicubically, by a whole factor: the shorter side gets ``_SMALLEST_SIDE`` pixels or more."""
    from scipy.ndimage import zoom  # slow to import

    factor = -(-_SMALLEST_SIDE // min(image.shape[:2]))
    if factor == 1:
        return np.ascontiguousarray(image)
    larger = zoom(image.astype(np.float32), (factor, factor, 1), order=3, mode="nearest")
    return np.clip(np.rint(larger), 0, 255).astype(np.uint8)


def judge_recording(
    target: Target,
    recording: Recording,
    recogniser: Recogniser,
    *,
    rng_key: RngKey,
    config: AttackConfig,
) -> tuple[Result, dict[str, Verdict]]:
    """Inverts a recording and asks a recogniser who is in the pictures.

    Args:
        target: the system.
        recording: at most its first 64 images, whole groups, are judged.
        recogniser: ``dlib_recogniser()``, or another one.
        rng_key: consumed.
        config: effort of the inversion.

    Returns:
        The figures, and the verdicts of ``attacker``, ``floor``, ``owner`` and ``blind``.
    """
    inverted = invert_recording(target, recording, rng_key=rng_key, config=config)
    verdicts = judge_pictures(target, recording, inverted._asdict(), recogniser)
    group_size, judged = recording.view.group_size, len(verdicts["owner"].distance)
    names = {
        "same_person": f"share taken for the same person (distance under {THRESHOLD})",
        "rank1_group": "share nearer to their original than to others of the group",
        "rank1_gallery": "share nearer to their original than to any other picture",
    }
    gallery = judged + len(_others(target))
    chances = {"rank1_group": 1 / group_size, "rank1_gallery": 1 / gallery}
    figures = tuple(
        Figure(
            name,
            getattr(verdicts["attacker"], field),
            getattr(verdicts["floor"], field),
            getattr(verdicts["owner"], field),
            f"{THREAT_MODEL}; judged by a public face recogniser",
            chance=chances.get(field, verdicts["blind"].same_person),
        )
        for field, name in names.items()
    )
    return Result(figures, inverted.attacker), verdicts


def judge_pictures(
    target: Target,
    recording: Recording,
    pictures: Mapping[str, HostArray],
    recogniser: Recogniser,
) -> dict[str, Verdict]:
    """Asks a recogniser who is in reconstructions of a recording.

    Args:
        target: its auxiliary images are the rest of the gallery.
        recording: at most its first 64 images, whole groups, are judged.
        pictures: name to float ``[B, H, W, 3]`` in [0, 1], in the order of the examples.
        recogniser: ``dlib_recogniser()``, or another one.
    """
    group_size = recording.view.group_size
    count = max(group_size, _MOST_IMAGES // group_size * group_size)
    originals = recording.images[:count]
    others = target.source.images(_others(target))
    gallery = recogniser(np.asarray(others), np.asarray(others))
    truth = recogniser(originals, originals)
    verdicts = {}
    for who, images in pictures.items():
        shown = np.rint(255 * images[: len(originals)]).astype(np.uint8)
        verdicts[who] = compare(recogniser(shown, originals), truth, gallery, group_size=group_size)
    return verdicts


def _others(target: Target) -> HostArray:
    """The attacker's own images that fill the gallery."""
    return target.source.splits[target.auxiliary_split][:_MOST_IMAGES]


def _judge(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    return judge_recording(target, recording, dlib_recogniser(), rng_key=rng_key, config=config)[0]


def _unsuitable(target: Target) -> str | None:
    missing = _missing()
    return f"{' and '.join(missing)} not installed. {_REMEDY}" if missing else None


JUDGE = Attack(
    "judge",
    f"{THREAT_MODEL}; judged by a public face recogniser",
    _judge,
    _unsuitable,
    one_matrix=True,
)
