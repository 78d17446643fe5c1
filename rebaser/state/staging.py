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
    """Remove a staging folder that a run has made.

    Any other folder, and what runs have not put there, is left; then OSError is raised, as for
    what cannot be removed.
    """
    if left := _remove(name, parent):
        raise OSError(errno.ENOTEMPTY, f"{left[0]} in it is not rebaser's", name)


def _remove(name: str, parent: int) -> list[str]:
    """Remove a staging folder, or a room in it; return what else is left there, beside its mark.

    Only what is found to be empty is given to rmdir(2): Wine's does harm to any other folder.
    """
    left: list[str] = []
    folder = open_folder(name, parent)
    try:
        names = names_in(folder)
        # Not even marked: the run that made it was killed at once.
        if names and MARK not in names and not name.startswith(ROOM):
            raise OSError(errno.ENOTEMPTY, "it was not made by rebaser", name)
        for each in sorted(names, key=MARK.__eq__):
            is_copy = each.endswith(".dll") and each[:-4].isdecimal()
            if each.startswith(ROOM):
                left += [f"{each}/{other}" for other in _remove(each, folder)]
            elif each in (NEW, PROBE) or each.startswith(NOTE) or is_copy:
                os.unlink(each, dir_fd=folder)
            elif each != MARK:
                left.append(each)
            elif not left:
                os.unlink(each, dir_fd=folder)
    finally:
        os.close(folder)
    if not left:
        os.rmdir(name, dir_fd=parent)
    return left
