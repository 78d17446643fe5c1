"""One DLL on its way from the plan to its place."""

from __future__ import annotations

import os

from cygwin.image import Image
from rebaser.plan.survey import Source
from rebaser.report import Move
from rebaser.state.staging import StagingFolder


class Replacement:
    """A move, the file that it concerns, and the copy that takes that file's place.

    `original` and `copy` are descriptors while they are open; `staged` is the copy's name in the
    folder `staging`.
    """

    staging: StagingFolder
    staged: str

    def __init__(
        self, move: Move, source: Source, image: Image | None, original: int | None = None
    ) -> None:
        self.move = move
        self.source = source
        self.image = image
        self.original = original
        self.copy: int | None = None

    @property
    def name(self) -> str:
        """The first of the file's names, relative to the root."""
        return self.move.path

    def is_named(self, st: os.stat_result) -> bool:
        """Return whether this is the file that was seen, whatever its times are by now."""
        seen = self.source.seen
        return (st.st_ino, st.st_dev, st.st_size) == (seen.inode, seen.device, seen.size)

    def close(self, *, copy: bool = True) -> None:
        """Close the original, as Cygwin wants it of what is replaced, and the copy."""
        if self.original is not None:
            os.close(self.original)
            self.original = None
        if self.copy is not None and copy:
            os.close(self.copy)
            self.copy = None
