"""What became of a plan's moves."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rebaser.report import Move
from rebaser.scan.skip import Skipped, Stay


class Applied:
    """The moves that were carried out, and by name why the others were not.

    `now` is the stat of each moved file's new self, `folders` are those in which names were
    replaced; `changed` are the names of `skipped` at which another file lies by now, or none. All
    names are relative to the root.
    """

    def __init__(self, moved: Sequence[Move] = ()) -> None:
        self.moved = list(moved)
        self.now: dict[str, os.stat_result] = {}
        self.skipped: dict[str, Skipped] = {}
        self.failed: dict[str, str] = {}
        self.changed: set[str] = set()
        self.folders: set[str] = set()

    def note_changed(self, name: str, detail: str = "") -> None:
        """Note a file that is no longer what was seen."""
        self.skipped[name] = Skipped(name, Stay.CHANGED, detail)
        self.changed.add(name)

    def note_in_use(self, name: str, user: str) -> None:
        """Note a file that somebody has loaded."""
        self.skipped[name] = Skipped(name, Stay.IN_USE, user)
