"""The options that decide what a run does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from cygwin.address_space import ARENA, GRANULARITY, I386, SAFE, X86_64, Range
from rebaser.errors import UsageError
from rebaser.scanner import Rules
from rebaser.text import address

FOUR_GIB = 0x1_0000_0000


class Options(NamedTuple):
    """What a run is to do. Two runs with equal options do the same work on the same tree."""

    arena: Range | None = None
    """Where moved images go, instead of the usual arena of the machine that it suits."""
    database: str | None = None
    """A file of Cygwin's rebase database, instead of the system's own."""
    cygwin_root: str | None = None
    """The folder that is `/` for the paths in the database."""
    avoid: tuple[str, ...] = ()
    """Files and folders whose images' slots are kept free."""
    suffixes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    keep_aslr: bool = False
    force_signed: bool = False
    touch: bool = False
    engine: str = "auto"

    @property
    def rules(self) -> Rules:
        """What the scan looks at."""
        return Rules(self.suffixes, self.excludes)

    @property
    def arenas(self) -> Mapping[int, Range]:
        """The arena of each machine."""
        if self.arena is None:
            return ARENA
        return {**ARENA, I386 if self.arena.high <= FOUR_GIB else X86_64: self.arena}

    def key(self) -> str:
        """Return a text that differs where the options do; relative paths are made absolute."""
        placed = self._replace(
            database=self.database and os.path.abspath(self.database),
            cygwin_root=self.cygwin_root and os.path.abspath(self.cygwin_root),
            avoid=tuple(map(os.path.abspath, self.avoid)),
        )
        return " ".join(f"{name}={value!r}" for name, value in placed._asdict().items())


def parse_arena(text: str) -> Range:
    """Return the arena that `LOW-HIGH` names, made up of whole slots. Raises UsageError."""
    try:
        low, high = (int(part.replace("_", ""), 0) for part in text.split("-"))
    except ValueError:
        raise UsageError(
            f"--arena {text}: give two addresses, such as 0x200000000-0x400000000"
        ) from None
    top = SAFE[X86_64].high
    if high <= low or high - low < GRANULARITY:
        raise UsageError(
            f"--arena {text}: the second address must be a slot or more above the first"
        )
    if low < FOUR_GIB < high or high > top:
        raise UsageError(
            f"--arena {text}: an arena lies below 4 GiB (i386), or above it (x86_64) and below "
            f"{address(top)}, where Cygwin puts stacks and heap"
        )
    if low >= FOUR_GIB:
        low = max(low, ARENA[X86_64].low) if low >= ARENA[X86_64].low - GRANULARITY else low
    return Range(-(-low // GRANULARITY) * GRANULARITY, high // GRANULARITY * GRANULARITY)


def read_only_from(source: str) -> bytes:
    """Return what --only-from names: the content of a file, or of standard input for `-`."""
    import sys

    try:
        if source == "-":
            return sys.stdin.buffer.read()
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"--only-from {source}: cannot be read ({error.strerror})") from error


def named_paths(listed: bytes, tree_root: str, scope: str, *, nul: bool) -> frozenset[str]:
    """Return the paths, relative to the tree's root, that a list names.

    One path a line, or ended by NUL; relative to the folder that was asked for, or absolute. What
    lies outside the tree is left out; whether the others exist and are images shows later. Raises
    UsageError for a list that is separated otherwise.
    """
    if not nul and b"\0" in listed:
        raise UsageError("the list given to --only-from holds NUL characters: give -0 too")
    found = set()
    asked = os.path.join(tree_root, scope)
    for line in listed.split(b"\0" if nul else b"\n"):
        name = os.fsdecode(line if nul else line.removesuffix(b"\r"))
        if not name:
            continue
        path = os.path.normpath(os.path.join(asked, name))
        # The folder's real path, as the tree's root is one; the file itself may be a link.
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        top = tree_root.rstrip("/") + "/"
        if path.startswith(top):
            found.add(path[len(top) :])
    return frozenset(found)
