"""What became of a plan's moves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from rebaser.report import Move
from rebaser.scan.skip import Skipped, Stay


@dataclass
class Applied:
    """The moves that were carried out, and by name why the others were not.

    `now` is the stat of each moved file's new self, `folders` are those in which names were
    replaced; `changed` are the names of `skipped` at which another file lies by now, or none. All
    names are relative to the root. `seconds` are those of each stage.
    """

    moved: list[Move] = field(default_factory=list)
    now: dict[str, os.stat_result] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    def note_changed(self, name: str, detail: str = "") -> None:
        """Note a file that is no longer what was seen."""
        self.skipped[name] = Skipped(name, Stay.CHANGED, detail)
        self.changed.add(name)

    def note_in_use(self, name: str, user: str) -> None:
        """Note a file that somebody has loaded."""
        self.skipped[name] = Skipped(name, Stay.IN_USE, user)
