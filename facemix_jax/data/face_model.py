"""Who is drawn, and how: named parameters of synthetic faces and their 40 attributes.

Attributes follow CelebA's base rates by sex and age; shared latent factors (a Gaussian copula)
give the main correlations beside those. What is drawn follows from the attributes, with a gap
between the two values of each, so that a picture shows them.

Lengths are in distances between the eyes; the origin lies midway between them, x points right
and y down, as in CelebA's alignment.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax._types import Array, RngKey

# name: percent of (young men, older men, young women, older women), the latent factor it follows,
# how closely (signed), and how much of the rest is the person's, not the picture's. Percentages
# are those of 20,000 CelebA labels, except where ``_consistent`` adds or removes some: the beards,
# Chubby and Oval_Face are set so that their rates come out near CelebA's after it.
_TABLE: dict[str, tuple[int, int, int, int, str, float, float]] = {
    "5_o_Clock_Shadow": (37, 16, 0, 0, "beard", 0.5, 1.0),
    "Arched_Eyebrows": (5, 3, 39, 33, "glamour", 0.4, 1.0),
    "Attractive": (38, 7, 72, 30, "glamour", 0.5, 1.0),
    "Bags_Under_Eyes": (25, 45, 8, 18, "weight", 0.4, 1.0),
    "Bald": (2, 10, 0, 0, "none", 0.0, 1.0),
    "Bangs": (10, 3, 17, 36, "none", 0.0, 1.0),
    "Big_Lips": (17, 10, 27, 21, "glamour", 0.2, 1.0),
    "Big_Nose": (29, 56, 8, 19, "weight", 0.5, 1.0),
    "Black_Hair": (38, 16, 21, 11, "none", 0.0, 1.0),
    "Blond_Hair": (2, 2, 23, 26, "none", 0.0, 1.0),
    "Blurry": (5, 7, 4, 10, "none", 0.0, 0.0),
    "Brown_Hair": (19, 8, 25, 24, "none", 0.0, 1.0),
    "Bushy_Eyebrows": (31, 11, 7, 2, "beard", 0.3, 1.0),
    "Chubby": (2, 18, 0, 3, "weight", 0.8, 1.0),
    "Double_Chin": (3, 22, 1, 4, "weight", 0.8, 1.0),
    "Eyeglasses": (7, 22, 2, 8, "none", 0.0, 0.5),
    "Goatee": (11, 10, 0, 0, "beard", 0.8, 1.0),
    "Gray_Hair": (1, 24, 0, 8, "none", 0.0, 1.0),
    "Heavy_Makeup": (0, 0, 68, 48, "glamour", 0.8, 0.5),
    "High_Cheekbones": (30, 37, 56, 72, "smile", 0.85, 0.5),
    "Male": (100, 100, 0, 0, "none", 0.0, 1.0),
    "Mouth_Slightly_Open": (43, 45, 53, 65, "smile", 0.7, 0.0),
    "Mustache": (3, 8, 0, 0, "beard", 0.6, 1.0),
    "Narrow_Eyes": (11, 13, 10, 12, "smile", 0.2, 0.8),
    "No_Beard": (60, 68, 100, 100, "beard", -1.0, 1.0),
    "Oval_Face": (30, 24, 40, 28, "glamour", 0.1, 1.0),
    "Pale_Skin": (3, 2, 6, 4, "none", 0.0, 1.0),
    "Pointy_Nose": (16, 14, 35, 28, "glamour", 0.3, 1.0),
    "Receding_Hairline": (5, 24, 6, 4, "weight", 0.2, 1.0),
    "Rosy_Cheeks": (0, 0, 10, 10, "glamour", 0.6, 0.5),
    "Sideburns": (7, 8, 0, 0, "beard", 0.8, 1.0),
    "Smiling": (39, 45, 54, 69, "smile", 0.85, 0.0),
    "Straight_Hair": (26, 20, 19, 12, "none", 0.0, 1.0),
    "Wavy_Hair": (16, 10, 43, 49, "none", 0.0, 1.0),
    "Wearing_Earrings": (2, 1, 28, 48, "glamour", 0.5, 0.3),
    "Wearing_Hat": (8, 8, 3, 3, "none", 0.0, 0.2),
    "Wearing_Lipstick": (1, 0, 80, 69, "glamour", 0.85, 0.5),
    "Wearing_Necklace": (2, 1, 17, 29, "glamour", 0.4, 0.2),
    "Wearing_Necktie": (10, 31, 0, 0, "none", 0.0, 0.4),
    "Young": (100, 0, 100, 0, "none", 0.0, 1.0),
}
ATTRIBUTE_NAMES = tuple(_TABLE)
"""The 40 attributes in CelebA's order."""

NOT_DRAWN = ("Attractive",)
"""Attributes that are no feature of the drawing, only correlated with some."""

_FACTORS = ("none", "glamour", "weight", "beard", "smile")
_PERCENT = np.array([row[:4] for row in _TABLE.values()], np.float32).T / 100
_FACTOR = np.array([_FACTORS.index(row[4]) for row in _TABLE.values()])
_LOADING = np.array([row[5] for row in _TABLE.values()], np.float32)
_PERSONAL = np.array([row[6] for row in _TABLE.values()], np.float32)
_MALE, _YOUNG_IF_MALE, _YOUNG_IF_FEMALE = 0.45, 0.62, 0.84

SHAPE = (
    *("face_width", "jaw", "chin_length", "forehead", "eye_spacing", "eye_size", "eye_tilt"),
    *("iris_hue", "iris_light", "brow_height", "brow_tilt", "brow_length", "nose_width"),
    *("nose_length", "mouth_width", "mouth_height", "lip_fullness", "skin_tone", "skin_hue"),
    *("hair_tone", "hair_volume", "hair_length", "parting", "strand_phase", "strand_scale"),
    *("ear_size", "mole_x", "mole_y", "freckles", "wrinkles", "wave_phase", "neck_width"),
)
"""What no attribute names, but a person keeps."""

POSE = (
    *("shift_x", "shift_y", "scale", "roll", "yaw", "pitch", "light_x", "light_y"),
    *("light_strength", "light_warmth", "exposure", "gaze_x", "gaze_y", "mouth_gap"),
    *("smile_strength", "cloth_hue", "cloth_light", "cloth_style", "accent_hue"),
    *("glasses_tint", "hat_hue", "hat_style", "backdrop_light", "backdrop_hue"),
    *("wall_x", "wall_tilt", "wall_light", "lamp_x", "lamp_y", "lamp_size", "lamp_hue"),
    *("shelf_x", "shelf_y", "shelf_width", "shelf_height", "shelf_hue"),
)
"""What changes from picture to picture."""

_AT = {name: i for i, name in enumerate(ATTRIBUTE_NAMES)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Person:
    """What stays the same in every picture of a person.

    Attributes:
        male: bool ``[]``.
        young: bool ``[]``.
        factors: float ``[5]``, the latent factors (the smile's is left to the picture).
        traits: float ``[40]``, standard normal, one for each attribute.
        shape: float ``[32]``, uniform in [-1, 1], in the order of ``SHAPE``.
        classes: float ``[4]``, uniform: hair colour, hair form, beard, glasses' style.
    """

    male: Array
    young: Array
    factors: Array
    traits: Array
    shape: Array
    classes: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Face:
    """Everything the drawing needs for one picture.

    Attributes:
        attributes: bool ``[40]``.
        full_beard: bool ``[]``.
        person: who it is.
        pose: float ``[36]``, uniform in [-1, 1], in the order of ``POSE``.
        backdrop: float ``[3, 4, 4]``, colours of a coarse background.
        grain: int ``[2]``, where the skin's texture is cut from.
    """

    attributes: Array
    full_beard: Array
    person: Person
    pose: Array
    backdrop: Array
    grain: Array

    def has(self, name: str) -> Array:
        """Attribute ``name`` as 0.0 or 1.0, ``[]``."""
        return self.attributes[_AT[name]].astype(jnp.float32)

    def is_(self, name: str) -> Array:
        """Attribute ``name``, bool ``[]``."""
        return self.attributes[_AT[name]]

    def shape(self, name: str, low: float = -1.0, high: float = 1.0) -> Array:
        """The person's ``name`` (see ``SHAPE``), scaled to ``[low, high]``, ``[]``."""
        return low + (high - low) * (self.person.shape[SHAPE.index(name)] + 1) / 2

    def posed(self, name: str, low: float = -1.0, high: float = 1.0) -> Array:
        """The picture's ``name`` (see ``POSE``), scaled to ``[low, high]``, ``[]``."""
        return low + (high - low) * (self.pose[POSE.index(name)] + 1) / 2


def sample_person(rng_key: RngKey) -> Person:
    """A person; all values follow from the key."""
    drawn = _uniform(rng_key, sex=1, age=1, factors=5, traits=40, shape=len(SHAPE), classes=4)
    male = drawn["sex"][0] < _MALE
    return Person(
        male=male,
        young=drawn["age"][0] < jnp.where(male, _YOUNG_IF_MALE, _YOUNG_IF_FEMALE),
        factors=_normal(drawn["factors"]),
        traits=_normal(drawn["traits"]),
        shape=2 * drawn["shape"] - 1,
        classes=drawn["classes"],
    )


def sample_face(rng_key: RngKey, person: Person) -> Face:
    """A picture of ``person``: expression, accessories, pose, light and background."""
    drawn = _uniform(rng_key, smile=1, mood=40, pose=len(POSE), backdrop=48, grain=2)
    factors = jnp.where(
        jnp.arange(len(_FACTORS)) == _FACTORS.index("smile"),
        _normal(drawn["smile"]),
        person.factors,
    )
    personal, loading = jnp.asarray(_PERSONAL), jnp.asarray(_LOADING)
    own = jnp.sqrt(personal) * person.traits + jnp.sqrt(1 - personal) * _normal(drawn["mood"])
    latent = loading * factors[_FACTOR] + jnp.sqrt(1 - loading**2) * own
    column = jnp.where(person.male, 0, 2) + jnp.where(person.young, 0, 1)
    rates = jnp.asarray(_PERCENT)[column]
    attributes = jax.scipy.stats.norm.cdf(latent) > 1 - rates
    attributes, full_beard = _consistent(attributes, rates, person)
    return Face(
        attributes=attributes,
        full_beard=full_beard,
        person=person,
        pose=2 * drawn["pose"] - 1,
        backdrop=drawn["backdrop"].reshape(3, 4, 4),
        grain=(128 * drawn["grain"]).astype(jnp.int32),
    )


def _uniform(rng_key: RngKey, **sizes: int) -> dict[str, Array]:
    """Uniform numbers by purpose, in one draw: each draw costs half a second of compilation."""
    values = jax.random.uniform(rng_key, (sum(sizes.values()),))
    parts = jnp.split(values, np.cumsum(list(sizes.values()))[:-1])
    return dict(zip(sizes, parts, strict=True))


def _normal(uniform: Array) -> Array:
    """Standard normal from uniform numbers."""
    return jax.scipy.special.ndtri(jnp.clip(uniform, 1e-6, 1 - 1e-6))


def _consistent(attributes: Array, rates: Array, person: Person) -> tuple[Array, Array]:
    """Removes contradictions: one hair colour and form at most, none for the bald, and so on."""
    drawn = {name: attributes[i] for name, i in _AT.items()}
    hair = ~drawn["Bald"]
    for names, u in (
        (("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"), person.classes[0]),
        (("Straight_Hair", "Wavy_Hair"), person.classes[1]),
    ):
        low = jnp.zeros(())
        for name in names:
            high = low + rates[_AT[name]]
            drawn[name] = hair & (u >= low) & (u < high)
            low = high
    drawn["Big_Nose"] &= ~drawn["Pointy_Nose"]
    drawn["Receding_Hairline"] |= drawn["Gray_Hair"] & (person.classes[2] > 0.75)
    drawn["Receding_Hairline"] &= hair
    drawn["Bangs"] &= hair & ~drawn["Receding_Hairline"]
    drawn["Chubby"] |= drawn["Double_Chin"] & (person.classes[3] < 0.6)
    drawn["Oval_Face"] &= ~drawn["Chubby"]
    drawn["Pale_Skin"] &= ~drawn["Rosy_Cheeks"]
    full_beard = person.male & (person.classes[2] < 0.06)
    drawn["5_o_Clock_Shadow"] &= ~(full_beard | drawn["Goatee"])
    drawn["Sideburns"] = (drawn["Sideburns"] | full_beard) & hair
    drawn["Mustache"] |= full_beard
    kinds = ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns")
    drawn["No_Beard"] = ~full_beard
    for name in kinds:
        drawn["No_Beard"] &= ~drawn[name]
    drawn["Male"], drawn["Young"] = person.male, person.young
    return jnp.stack([drawn[name] for name in ATTRIBUTE_NAMES]), full_beard
