"""What a run has at hand: its tree and options, what was asked for, whom to tell, who relocates."""

from __future__ import annotations

import os
import time

from cygwin.values import NamedTuple
from rebaser.errors import UsageError
from rebaser.files import on_cygwin
from rebaser.options import Options, Request
from rebaser.progress import Progress
from rebaser.report import Seconds
from rebaser.scan.snapshot import Seen
from rebaser.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rebaser.apply.engines import Engine
    from rebaser.plan.proposal import Planner


class Timed(NamedTuple):
    """A block whose time is added to what its stage took so far."""

    seconds: dict[str, float]
    stage: str

    def __enter__(self) -> None:
        self.seconds[self.stage] -= time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.stage] += time.monotonic()


class Job:
    """One run: what it was asked for, and what its stages share.

    The globs of `options` are relative to the root. `seconds` is how long each stage took.
    `open_files` are descriptors that the last scan left open, by path; it began at `scan_began`
    (time.monotonic).
    """

    def __init__(
        self, tree: Tree, options: Options, only: frozenset[str] | None, progress: Progress | None
    ) -> None:
        self.tree = tree
        self.options = options
        self.state = tree.state
        self.progress = progress or Progress()
        self.seconds = dict.fromkeys(Seconds._fields, 0.0)
        self.open_files: dict[str, int] = {}
        self.scan_began = time.monotonic()
        # Another user's run may have failed where ours would not, and several trees may have been
        # given one state folder: neither covers ours.
        whose = f"root={tree.root!r} user={os.geteuid()}"
        self.request = Request(f"{whose} {self.options.key()}", tree.scope, only)
        self._told: set[str] = set()
        self._taken: dict[tuple[int, int], tuple[int, int]] = {}  # who was first in each slot
        self._planner: Planner | None = None
        self._engine: Engine | None = None

    def inside(self, outer: Tree) -> Job:
        """Return this job as one on the tree that its own tree lies in."""
        inside = self.tree.root[len(outer.root.rstrip("/")) + 1 :]
        only = self.request.only and frozenset(f"{inside}/{name}" for name in self.request.only)
        return Job(outer, self.options.in_tree(f"{inside}/"), only, self.progress)

    def tell(self, text: str) -> None:
        """Tell something, once."""
        if text not in self._told:
            self._told.add(text)
            self.progress.tell(text)

    def timed(self, stage: str) -> Timed:
        """Add up how long a stage takes."""
        return Timed(self.seconds, stage)

    def close_files(self) -> None:
        """Close what the last scan has kept open."""
        while self.open_files:
            os.close(self.open_files.popitem()[1])

    def planner(self) -> Planner:
        """Return who plans for this run."""
        if self._planner is None:
            from rebaser.plan.proposal import Planner

            self._planner = Planner(self.tree, self.options, self.request, self.tell)
        return self._planner

    def engine(self) -> Engine:
        """Return who relocates. Raises UsageError where that one cannot run."""
        if self._engine is None:
            self._engine = choose_engine(self.options.engine, self.tell)
        return self._engine

    def is_certain_to_move(self, name: str, seen: Seen) -> bool:
        """Return whether an image must move, or one of those that were asked about before it.

        By itself, whatever lies around it; or because two overlap, either of which may move.
        """
        from cygwin.address_space import GRANULARITY, slot_size
        from rebaser.plan.placement import must_move

        arena = self.options.arenas.get(seen.machine)
        if not arena or self.options.skip_cause((name,), seen) or not self.request.asks_for(name):
            return False
        size = slot_size(seen.image_size)
        if must_move(seen.base, size, arena) or (seen.dynamic_base and not self.options.keep_aslr):
            return True
        file = (seen.device, seen.inode)  # another name of the same file is no other image
        slots = range(seen.base // GRANULARITY, (seen.base + size) // GRANULARITY)
        return any(self._taken.setdefault((seen.machine, s), file) != file for s in slots)


def choose_engine(name: str, warn: Callable[[str], None]) -> Engine:
    """Return the engine called `name`, one of `options.ENGINES`.

    `auto` is Cygwin's programs where this is Cygwin or MSYS2 and both are found, with the builtin
    engine behind them, else the builtin engine; `warn` takes what such a fall-back has to say.
    Raises UsageError when a named one cannot run.
    """
    from rebaser.apply.engines import BuiltinEngine

    builtin = None if name == "cygwin" else BuiltinEngine()
    if builtin and not (name == "auto" and on_cygwin()):
        return builtin
    # They import shutil and tempfile: 4 ms.
    from cygwin.programs import Programs
    from rebaser.apply.engines.cygwin import CygwinEngine

    if programs := Programs.find():
        return CygwinEngine(programs, builtin, warn)
    if builtin:
        return builtin
    raise UsageError(
        "--engine cygwin needs the programs rebase and peflags on PATH: install Cygwin's "
        "or MSYS2's package 'rebase', or take --engine builtin"
    )
