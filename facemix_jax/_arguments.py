"""Folders on the command line, where shells leave the ``~`` of ``--workdir=~/runs``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from facemix_jax._files import expanded


def _spec(
    read: Callable[[list[str]], Any], *, several: bool = False
) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar="[PATH [PATH ...]]" if several else "PATH",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(each) for each in value] if several else [str(value)],
    )


Folder = Annotated[Path, _spec(lambda texts: expanded(texts[0]))]
"""One folder; an empty text and the folders of unknown users are wrong usage."""

# Not Folder | None, nor tuple[Folder, ...]: of those the parser does not say what is wrong.
OptionalFolder = Annotated[Path | None, _spec(lambda texts: expanded(texts[0]))]
"""The same where none need be given."""

Folders = Annotated[
    tuple[Path, ...], _spec(lambda texts: tuple(map(expanded, texts)), several=True)
]
"""Any number of them."""
