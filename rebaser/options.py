"""What a run is to do: its options, and which images it is asked for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from cygwin.address_space import (
    ARENA,
    GRANULARITY,
    I386,
    SAFE,
    X86_64,
    Range,
    is_runtime,
    machine_name,
)
from cygwin.fault import FAULTS, Fault
from cygwin.values import NamedTuple
from rebaser.errors import UsageError
from rebaser.scan.skip import Stay, is_excluded
from rebaser.scan.snapshot import SIGNED, Seen
from rebaser.scan.walk import Rules
from rebaser.text import address

FOUR_GIB = 0x1_0000_0000

# Who relocates; rebaser/apply/engines says what each means.
ENGINES = ("auto", "builtin", "cygwin")

# Where --arena may lie. i386: programs lie at 0x40_0000 with their heap and stacks above, DLLs of
# Windows from 0x7000_0000 (from where Cygwin's rebaseall fills downward).
LIMITS = {X86_64: SAFE[X86_64], I386: Range(0x1000_0000, 0x7000_0000)}


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

    def in_tree(self, scope: str) -> Options:
        """Return them with globs relative to the root of a tree, not to `scope`, a part of it.

        One that begins with a slash, as the tree's own do, is relative to the root already.
        """
        if not self.excludes:
            return self
        from glob import escape

        globs = (g[1:] if g[:1] == "/" else escape(scope) + g for g in self.excludes)
        return self._replace(excludes=tuple(globs))

    def skip_cause(self, names: Collection[str], seen: Seen) -> Fault | Stay | None:
        """Return why the file of these names, relative to the root, is never moved, or None."""
        if seen.fault:
            return FAULTS[seen.fault]
        if any(map(is_runtime, names)):
            return Stay.RUNTIME
        if seen.flags & SIGNED and not self.force_signed:
            return Stay.SIGNED
        if self.excludes and any(is_excluded(name, self.excludes) for name in names):
            return Stay.EXCLUDED
        return None

    def key(self) -> str:
        """Return a text that differs where the options do; relative paths are made absolute."""
        placed = self._replace(
            database=self.database and os.path.abspath(self.database),
            cygwin_root=self.cygwin_root and os.path.abspath(self.cygwin_root),
            avoid=tuple(map(os.path.abspath, self.avoid)),
        )
        return " ".join(f"{name}={value!r}" for name, value in placed._asdict().items())


class Request(NamedTuple):
    """What a run was asked for: its options as one text, and which images may move.

    `below` is the part of the tree asked for ("" is all of it, else a path that ends in a slash);
    `only` are the paths named by --only-from, or None for every path.
    """

    options: str
    below: str = ""
    only: frozenset[str] | None = None

    @property
    def is_for_all(self) -> bool:
        """Whether every image of the tree may move."""
        return not self.below and self.only is None

    def asks_for(self, path: str) -> bool:
        """Return whether the image at `path`, relative to the root, may move."""
        return path.startswith(self.below) and (self.only is None or path in self.only)

    def concerns(self, path: str) -> bool:
        """Return whether what happened to a file or folder matters to what was asked for."""
        asked = (self.below,) if self.only is None else self.only
        inside = any(one.startswith(f"{path}/") for one in asked)
        return path == "." or inside or self.asks_for(path)

    def covers(self, other: Request) -> bool:
        """Return whether a run for this request does all the work of the other."""
        if self.options != other.options:
            return False
        if other.only is not None:
            return all(map(self.asks_for, other.only))
        return self.only is None and other.below.startswith(self.below)


def parse_arena(text: str) -> Range:
    """Return the arena that `LOW-HIGH` names, made up of whole slots. Raises UsageError.

    Below 4 GiB it is that of i386, above that of x86_64.
    """
    try:
        low, high = map(_hexadecimal, text.split("-"))
    except ValueError:
        raise UsageError(
            f"--arena {text}: give two addresses in hexadecimal with 0x before each, such as "
            "0x200000000-0x400000000"
        ) from None
    machine = I386 if low < FOUR_GIB else X86_64
    limits = LIMITS[machine]
    if low < limits.low or high > limits.high:
        lies = " and one ".join(
            f"for {machine_name(one)} lies within {address(low)}-{address(high)}"
            for one, (low, high) in sorted(LIMITS.items(), key=lambda item: item[0] != machine)
        )
        raise UsageError(f"--arena {text}: an address range {lies}")
    low = max(low, ARENA[X86_64].low) if machine == X86_64 else low
    arena = Range(-(-low // GRANULARITY) * GRANULARITY, high // GRANULARITY * GRANULARITY)
    if arena.high <= arena.low:
        raise UsageError(
            f"--arena {text}: the second address must lie above the first, with 64 KiB between "
            "them that begin at a multiple of 64 KiB: no DLL takes less"
        )
    return arena


def _hexadecimal(text: str) -> int:
    if text[:2].lower() != "0x":
        raise ValueError(text)
    return int(text, 16)
