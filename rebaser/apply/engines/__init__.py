"""Who relocates the staged copies: the seam between the commit protocol and the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cygwin.image import Image


@dataclass(frozen=True)
class Staged:
    """A copy of an image, byte for byte as the original, that is to be moved in place.

    `staged` is its path, `copy` a descriptor that reads and writes it, `source` one that reads the
    original, from which `image` was read. `new_base` is an address; equal bases mean that only the
    flag DYNAMIC_BASE is to be cleared.
    """

    staged: str
    source: int
    copy: int
    image: Image
    new_base: int
    clear_dynamic_base: bool


class Engine(Protocol):
    """Moves staged copies to their new bases; its work is checked by whoever called it."""

    name: str
    version: str | None
    starts_processes: bool

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy that can be moved; return {staged: reason} for the others.

        TimeDateStamp and everything else that is not a base, a relocated word or the flag is
        left as it was.
        """
        ...  # a Protocol's member has no body
