"""One DLL on its way from the plan to its place, and what became of all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cygwin.image import Image
from rebaser.plan.survey import Source
from rebaser.report import Move
from rebaser.scan.skip import Skipped, Stay
from rebaser.state.staging import StagingFolder


class Replacement:
    """A move, the file that it concerns, and the copy that takes that file's place.

    `name` is the first of the file's names. `original` and `copy` are descriptors while they are
    open; `staged` is the copy's name in the folder `staging`.
    """

    staging: StagingFolder
    staged: str
    copy: int | None = None

    def __init__(
        self, move: Move, source: Source, image: Image | None, original: int | None = None
    ) -> None:
        self.move = move
        self.name = move.path
        self.source = source
        self.image = image
        self.original = original

    def close(self, *, copy: bool = True) -> None:
        """Close the original, as Cygwin wants it of what is replaced, and the copy."""
        if self.original is not None:
            os.close(self.original)
            self.original = None
        if self.copy is not None and copy:
            os.close(self.copy)
            self.copy = None


class Applied:
    """The moves that were carried out, and by name why the others were not.

    `now` is the stat of each moved file's new self; `changed` are the names of `skipped` at which
    another file lies by now, or none. All names are relative to the root.
    """

    def __init__(self, moved: Sequence[Move] = ()) -> None:
        self.moved = list(moved)
        self.now: dict[str, os.stat_result] = {}
        self.skipped: dict[str, Skipped] = {}
        self.failed: dict[str, str] = {}
        self.changed: set[str] = set()

    def note_changed(self, name: str, detail: str = "", cause: Stay = Stay.CHANGED) -> None:
        """Note a file that is no longer what was seen."""
        self.skipped[name] = Skipped(name, cause, detail)
        self.changed.add(name)

    def note_in_use(self, name: str, user: str) -> None:
        """Note a file that somebody has loaded."""
        self.skipped[name] = Skipped(name, Stay.IN_USE, user)
