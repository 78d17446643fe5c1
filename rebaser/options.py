"""The options that decide what a run does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from cygwin.address_space import ARENA, GRANULARITY, I386, SAFE, X86_64, Range, machine_name
from rebaser.errors import UsageError
from rebaser.scan.walk import Rules
from rebaser.text import address

FOUR_GIB = 0x1_0000_0000

# Who relocates; rebaser/apply/engines says what each means.
ENGINES = ("auto", "builtin", "cygwin")

# Where --arena may lie. i386: programs lie at 0x40_0000 with their heap and stacks above, DLLs of
# Windows from 0x7000_0000 (from where Cygwin's rebaseall fills downward).
LIMITS = {X86_64: SAFE[X86_64], I386: Range(0x1000_0000, 0x7000_0000)}
OUTSIDE = {
    X86_64: "below are programs and the Cygwin runtime, above stacks and heap "
    "(an arena of i386 lies below 0x70000000)",
    I386: "below are programs with their heap, above the DLLs of Windows "
    "(an arena of x86_64 begins at 0x200000000 or above)",
}


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
        return Rules(self.suffixes)

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
    """Return the arena that `LOW-HIGH` names, made up of whole slots. Raises UsageError.

    Below 4 GiB it is that of i386, above that of x86_64.
    """
    parts = text.replace("_", "").lower().split("-")
    try:
        if not all(part.startswith("0x") for part in parts):
            raise ValueError
        low, high = (int(part, 16) for part in parts)
    except ValueError:
        raise UsageError(
            f"--arena {text}: give two addresses in hexadecimal with 0x before each, such as "
            "0x200000000-0x400000000"
        ) from None
    if high <= low or high - low < GRANULARITY:
        raise UsageError(
            f"--arena {text}: the second address must be a slot or more above the first"
        )
    machine = I386 if low < FOUR_GIB else X86_64
    limits = LIMITS[machine]
    if low < limits.low or high > limits.high:
        raise UsageError(
            f"--arena {text}: an arena of {machine_name(machine)} lies within "
            f"{address(limits.low)}-{address(limits.high)}; {OUTSIDE[machine]}"
        )
    low = max(low, ARENA[X86_64].low) if machine == X86_64 else low
    arena = Range(-(-low // GRANULARITY) * GRANULARITY, high // GRANULARITY * GRANULARITY)
    if arena.high <= arena.low:
        raise UsageError(
            f"--arena {text}: it holds no whole slot (64 KiB, at a multiple of 64 KiB)"
        )
    return arena


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
    if nul and listed and b"\0" not in listed:
        raise UsageError(
            "with -0 each path given to --only-from ends in a NUL character, and there is none: "
            "leave -0 out for a list of lines"
        )
    names = os.fsdecode(listed if nul else listed.replace(b"\r\n", b"\n").rstrip(b"\r"))
    asked = os.path.join(tree_root, scope)
    top = tree_root.rstrip("/") + "/"
    # Where a folder really is, relative to the tree's root, which is a real path; the file itself
    # may be a link. Asked once for each folder: a manifest may have a million lines.
    inside: dict[str, str | None] = {}
    found = set()
    for name in names.split("\0" if nul else "\n"):
        if not name:
            continue
        folder, slash, base = name.rpartition("/")
        if base in ("", ".", ".."):
            folder, slash, base = os.path.normpath(os.path.join(asked, name)).rpartition("/")
        folder += slash
        if folder not in inside:
            real = os.path.realpath(os.path.join(asked, folder)).rstrip("/") + "/"
            inside[folder] = real[len(top) :] if real.startswith(top) else None
        prefix = inside[folder]
        if prefix is not None and base:
            found.add(prefix + base)
    return frozenset(found)


def first_not_there(listed: bytes, names: frozenset[str], tree_root: str) -> str | None:
    """Return the first name of a list none of whose names are there, None if one is."""
    if not listed.strip() or any(os.path.lexists(os.path.join(tree_root, n)) for n in names):
        return None
    return os.fsdecode(listed.replace(b"\0", b"\n").split(b"\n", 1)[0].rstrip(b"\r"))
