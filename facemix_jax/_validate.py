"""One style of error: the value, the limit and the remedy, before any work starts."""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np


class FacemixError(Exception):
    """An error the user can mend; the command line prints it without a trace and exits 1."""


class UsageError(FacemixError, ValueError):
    """A wrong argument or combination of arguments; the command line exits 2."""


class DataError(FacemixError, ValueError):
    """Input files that cannot be used as they are; the command line exits 1."""


def positive(**values: float) -> None:
    """Raises ``UsageError`` unless every value is greater than zero."""
    for name, value in values.items():
        if not value > 0:
            raise UsageError(
                f"{name} is {value}, but must be greater than 0. Give a larger {name}."
            )


def finite(**values: float) -> None:
    """Raises ``UsageError`` for what is no number, or infinite in float32, which networks take."""
    limit = float(np.finfo(np.float32).max)
    for name, value in values.items():
        if not abs(value) <= limit:
            raise UsageError(
                f"{name} is {value}, but must be a finite number, also in float32, which ends at "
                f"{limit:.2g}. Give one."
            )


def in_range(low: float, high: float, **values: float) -> None:
    """Raises ``UsageError`` unless every value lies in ``[low, high]``."""
    for name, value in values.items():
        if not low <= value <= high:
            raise UsageError(
                f"{name} is {value}, but must lie between {low} and {high}. "
                f"Choose {name} in that range."
            )


def pair(**values: Any) -> None:
    """Raises ``UsageError`` unless every value is two numbers."""
    for name, value in values.items():
        if np.shape(value) != (2,):
            raise UsageError(
                f"{name} is {value}, but must be two numbers: height, width. Give both."
            )


def divides(divisor: int, remedy: str = "", *, divisor_name: str, **values: int) -> None:
    """Raises ``UsageError`` unless ``divisor`` divides every value."""
    for name, value in values.items():
        if value % divisor:
            below, above = value - value % divisor, value - value % divisor + divisor
            nearest = f"{below} or {above}" if below else str(above)
            hint = remedy or f"Use {name} {nearest}, or another {divisor_name}."
            raise UsageError(
                f"{divisor_name} {divisor} does not divide {name} {value} "
                f"({value % divisor} left over). {hint}"
            )


def origin(reason: str) -> str:
    """How a sentence begins on where something comes from that cannot be rebuilt.

    Args:
        reason: why it cannot; what ``one_of`` says of unknown names may be of one's own.
    """
    if "is unknown" in reason:
        return "If it is of your own, register it first. Otherwise it"
    return "It"


def one_of(choices: Iterable[str], **values: str) -> None:
    """Raises ``UsageError`` unless every value is one of ``choices``."""
    names = sorted(choices)
    for name, value in values.items():
        if value not in names:
            close = difflib.get_close_matches(str(value), names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"{name} {value!r} is unknown; there is {', '.join(map(repr, names))}.{hint}"
            )
