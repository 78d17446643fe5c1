"""Who relocates the staged copies: the seam to the engines, and rebaser's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cygwin.fault import RelocationError
from cygwin.image import Image
from cygwin.relocation import relocate
from cygwin.values import NamedTuple
from rebaser.errors import advice


class Staged(NamedTuple):
    """A copy of an image, byte for byte as the original, that is to be moved in place.

    `image` was read from the original, `new_base` is an address. Equal bases mean that only the
    flag DYNAMIC_BASE is to be cleared. The descriptors stay the caller's, who keeps them open.
    """

    path: str  # the copy's, absolute
    source: int  # the original, open for reading
    copy: int  # the copy, open for reading and writing
    image: Image
    new_base: int
    clear_dynamic_base: bool


class Engine(Protocol):
    """Moves staged copies to their new bases; its work is checked by whoever called it."""

    name: str
    version: str | None
    starts_processes: bool

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy that can be moved; return {path of the copy: reason} for the others.

        Nothing changes but the base, the relocated words, the flag and the CheckSum, which need not
        be right yet.
        """
        ...  # a Protocol's member has no body


class BuiltinEngine:
    """Moves staged copies without any program: it works where fork does not."""

    name = "builtin"
    version: str | None = None
    starts_processes = False

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy; return {path: reason} for those that could not be moved."""
        reasons = {}
        for item in staged:
            try:
                clear = item.clear_dynamic_base
                relocate(item.copy, item.image, item.new_base, clear_dynamic_base=clear)
            except RelocationError as error:
                reasons[item.path] = str(error)
            except OSError as error:
                why = error.strerror or error
                reasons[item.path] = f"its copy could not be written ({why}): {advice(error)}"
        return reasons
