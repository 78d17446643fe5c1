"""A staging folder: made by a run, which says so inside, and cleared by the names runs give."""

from __future__ import annotations

import errno
import os

from rebaser.errors import suppress
from rebaser.files import make_file, names_in, open_folder
from rebaser.state import MARK, NEW, NOTE, PROBE

ROOM = "cygwin-"  # a folder in which an engine's programs work


class StagingFolder:
    """A folder for copies: `path` is for messages and programs, all else goes by `descriptor`."""

    def __init__(self, path: str, parent: int) -> None:
        """Make it in the folder `parent`, where no such name is. Raises OSError."""
        self.path = path
        name = os.path.basename(path)
        os.mkdir(name, 0o700, dir_fd=parent)
        self.descriptor = open_folder(name, parent)
        os.close(make_file(MARK, self.descriptor))
        self._given = 0
        self._there: list[str] = []

    def new_name(self) -> str:
        """Return the name of a copy to be made here."""
        self._there.append(f"{self._given:07}.dll")
        self._given += 1
        return self._there[-1]

    def remove_copies(self) -> None:
        """Remove the copies that did not take their originals' place."""
        for name in self._there:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)
        self._there.clear()

    def close(self) -> None:
        """Close the descriptor; it is of no use any more."""
        with suppress(AttributeError, OSError):  # it could not be made, or is closed
            os.close(self.descriptor)
        self.descriptor = -1

    __del__ = close


def remove_staging(name: str, parent: int) -> None:
    """Remove a staging folder that a run has made, if it is there.

    Any other folder, and what runs have not put there, is left; then OSError is raised, as for
    what cannot be removed.
    """
    try:
        folder = open_folder(name, parent)
    except FileNotFoundError:
        return
    try:
        names = names_in(folder)
        # Not even marked: the run that made it was killed at once.
        if names and MARK not in names:
            raise OSError(errno.ENOTEMPTY, "it was not made by rebaser", name)
        left = _clear(folder, names)
        if left:
            raise OSError(errno.ENOTEMPTY, f"{left[0]} in it is not rebaser's", name)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)


def _clear(folder: int, names: list[str]) -> list[str]:
    """Remove what runs put into a staging folder; return what else is left, which keeps the mark.

    Only what is found to be empty is given to rmdir(2): Wine's does harm to any other folder.
    """
    left = []
    for name in sorted(names, key=MARK.__eq__):
        is_copy = name.endswith(".dll") and name[:-4].isdecimal()
        if name.startswith(ROOM):
            room = open_folder(name, folder)
            try:
                rest = _clear(room, names_in(room))
            finally:
                os.close(room)
            if not rest:
                os.rmdir(name, dir_fd=folder)
            left += [f"{name}/{each}" for each in rest]
        elif name in (NEW, PROBE) or name.startswith(NOTE) or is_copy:
            os.unlink(name, dir_fd=folder)
        elif name == MARK:
            if not left:
                os.unlink(name, dir_fd=folder)
        else:
            left.append(name)
    return left
