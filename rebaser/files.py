"""The one way in which a file is put in place, DLLs and state alike."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

# A virus scanner or an indexer on Windows holds a new file open for a moment; elsewhere the first
# two are the final word.
MOMENTARY = (errno.EACCES, errno.EPERM, errno.EBUSY)
PAUSES = (0.01, 0.02, 0.05, 0.12, 0.3)  # seconds, half a second together


def put_in_place(staged: str, target: str) -> None:
    """Rename `staged`, which is durable already, over `target`; patient for half a second.

    Raises OSError; then `target` is what it was.
    """
    momentary = MOMENTARY if on_cygwin() else (errno.EBUSY,)
    for pause in (*PAUSES, None):
        try:
            os.replace(staged, target)
            return
        except OSError as error:
            if pause is None or error.errno not in momentary:
                raise
            time.sleep(pause)


def on_cygwin() -> bool:
    """Return whether this is Cygwin or MSYS2, where Windows decides about files."""
    import sys

    return sys.platform in ("cygwin", "msys")


def make_durable(descriptor: int) -> None:
    """Wait until a file's bytes are on the disk; the descriptor must be open for writing.

    Cygwin's fsync refuses (EACCES) a descriptor that is open for reading only.
    """
    os.fsync(descriptor)


def begin_to_make_durable(descriptor: int) -> None:
    """Let the system begin to write a file's bytes to the disk, and do not wait for it.

    Linux does so when it is told that they are not needed (posix_fadvise(2), mm/fadvise.c); what
    is being written stays in memory all the same.
    """
    with suppress(OSError, AttributeError):  # a hint, which not every system knows
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def make_names_durable(folder: str) -> None:
    """Wait until the names in a folder are on the disk; on Cygwin this does nothing."""
    if on_cygwin():
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a folder; there a rename is durable at once.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes, temporary: str) -> None:
    """Replace the file `path` by one that holds `data`; old or new after a crash, never mixed.

    `temporary` is a name on the same file system that nobody else uses; it is gone afterwards.
    """
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            make_durable(descriptor)
        put_in_place(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    make_names_durable(os.path.dirname(path))
