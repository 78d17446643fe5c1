"""The failures that rebaser expects, each with its exit status; what to do about the system's."""

from __future__ import annotations

import errno

WHOLE = "every file is whole, old or new"

_ADVICE = (
    ("make it readable and writable, or run rebaser as the owner of the tree", "EACCES EPERM"),
    ("make its file system writable and run rebaser again", "EROFS"),
    ("move away what is there and run rebaser again", "EEXIST ENOTEMPTY ENOTDIR ELOOP"),
    ("make room on its file system and run rebaser again", "ENOSPC EDQUOT"),
    ("raise the limit of open files (ulimit -n) and run rebaser again", "EMFILE ENFILE"),
    ("another mount shows it under this name: run rebaser on that folder alone", "EXDEV"),
    ("its disk, or the way to it, may be failing: look into the system's log", "EIO"),
    ("give it a shorter path", "ENAMETOOLONG"),
)


def advice(error: OSError) -> str:
    """Return what to do about an error of the system, for the end of a sentence."""
    name = errno.errorcode.get(error.errno or 0)
    return next((what for what, names in _ADVICE if name in names.split()), "run rebaser again")


class RebaserError(Exception):
    """An expected failure: one sentence that names the file, what was left and what to do."""

    exit_status = 1


class UsageError(RebaserError):
    """The command line or the environment asks for something that cannot be."""

    exit_status = 2


class BusyError(RebaserError):
    """Could not take the lock in the time allowed (EX_TEMPFAIL of sysexits.h)."""

    exit_status = 75


class suppress:  # noqa: N801
    """contextlib.suppress, whose module takes 2 ms of each start to import, 20 on Cygwin."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kinds)
