"""What a run did, as values."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cygwin.values import NamedTuple
from rebaser.errors import advice
from rebaser.scan.skip import Skipped, Stay
from rebaser.scan.snapshot import Group as Group


class Move(NamedTuple):
    """One image and its new base; equal bases mean that only DYNAMIC_BASE is cleared."""

    path: str
    machine: int
    old_base: int
    new_base: int
    slot_size: int
    reason: str
    clear_dynamic_base: bool


class Applied:
    """The moves that were carried out, and by name why the others were not.

    `now` is the stat of each moved file's new self; `changed` are the names of `skipped` at which
    another file lies by now, or none. All names are relative to the root.
    """

    def __init__(self, moved: Sequence[Move] = ()) -> None:
        self.moved = list(moved)
        self.now: dict[Move, os.stat_result] = {}
        self.skipped: dict[str, Skipped] = {}
        self.failed: dict[str, str] = {}
        self.changed: set[str] = set()

    def note_changed(self, name: str, detail: str = "", cause: Stay = Stay.CHANGED) -> None:
        """Note a file that is no longer what was seen."""
        self.skipped[name] = Skipped(name, cause, detail)
        self.changed.add(name)

    def note_failed(self, name: str, what: str, error: OSError) -> None:
        """Note what could not be done with a file, which stays as it was."""
        why = error.strerror or error
        self.failed[name] = f"{what} ({why}); it stays as it was; {advice(error)}"

    def note_in_use(self, name: str, user: str) -> None:
        """Note a file that somebody has loaded."""
        self.skipped[name] = Skipped(name, Stay.IN_USE, user)


class Seconds(NamedTuple):
    """How long each stage of a run took; `wait` is for the lock."""

    wait: float = 0.0
    scan: float = 0.0
    plan: float = 0.0
    stage: float = 0.0
    commit: float = 0.0
    total: float = 0.0
    exclusive: float = 0.0
    """How long the lock was held exclusively."""


class Report(NamedTuple):
    """The result of a run.

    Paths are relative to the root; `failed` are (path, reason). `engine` is who
    relocated, None where nobody was asked. `unfinished` are those that changed under our hands.
    `overlaps` are left and concern what was asked for; `others` is how many other DLLs overlap and
    would be moved by a run for everything. `settings` is the file of options that was read.
    """

    root: str
    engine: str | None
    engine_version: str | None = None
    run: int | None = None
    covered_by: int | None = None
    scanned: int = 0
    images: int = 0
    kept: int = 0
    moved: tuple[Move, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    unfinished: tuple[str, ...] = ()
    overlaps: tuple[Group, ...] = ()
    others: int = 0
    bytes_written: int = 0
    seconds: Seconds = Seconds()
    planned: bool = False
    """The moves were planned only (--dry-run)."""
    settings: str | None = None
    strict: bool = False
    """What no run cures counts for the exit status too."""

    @property
    def exit_status(self) -> int:
        """0 where nothing is left that this run could have done, else 1."""
        left = any(group.ours or self.strict for group in self.overlaps)
        return int(left or bool(self.failed or self.unfinished))
