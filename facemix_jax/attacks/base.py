"""What an attacker sees, and what an attack yields."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from facemix_jax._types import Array, HostArray, RngKey, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Everything that an honest but curious cloud sees of one request.

    Attributes:
        mixtures: float ``[B, ...]``, activations as they were sent.
        responses: float ``[B, D]``, what main made of them.
        main_variables: main's weights and statistics: the cloud runs it.
        group_size: ``M``, public.
        auxiliary: whatever else an attack is granted, by name: public weights of pre or post,
            faces of other people, a mean face. Each attack's ``threat_model`` says what it uses.
    """

    mixtures: Array
    responses: Array
    main_variables: Variables
    group_size: int
    auxiliary: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Figure(NamedTuple):
    """One privacy figure: never without its floor and the owner's own value.

    Larger values mean that the attacker learns more.

    Attributes:
        name: what is measured, with its unit.
        value: what the attacker reaches.
        floor: what anyone reaches with no attack at all. A defence hides nothing where the
            floor is already high.
        owner: what the owner of the secret reaches through the same protection.
        threat_model: one line: what the attacker knows.
    """

    name: str
    value: float
    floor: float
    owner: float
    threat_model: str

    @property
    def key_advantage(self) -> float:
        """``owner - value``: what holding the secret is worth. 0: the secret protects nothing."""
        return self.owner - self.value


class Attack(Protocol):
    """Tries to learn the group's activations or what they show from a ``View``."""

    def __call__(
        self, view: View, truth: HostArray, *, rng_key: RngKey, owner: HostArray
    ) -> tuple[Figure, ...]:
        """Attacks one request and scores the result.

        Args:
            view: what the attacker sees; nothing else may enter the attack itself.
            truth: ``[B, ...]``, the activations before protection, for scoring only.
            rng_key: consumed.
            owner: ``[B, ...]``, what the owner recovers of them, for the figure's ``owner``.
        """
        ...
