"""How files are opened, and the one way in which they are put in place, DLLs and state alike."""

from __future__ import annotations

import errno
import os
import stat as modes
import sys
import time

from rebaser.errors import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# A symbolic link that has taken a file's place is not followed, and a pipe is not waited for.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Looking at a file is no access: its owner may ask Linux not to note it.
_NO_ATIME = getattr(os, "O_NOATIME", 0)
# To go through a folder one need not be able to list it.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC

# A virus scanner or an indexer on Windows holds a new file open for a moment; elsewhere the first
# two are the final word.
MOMENTARY = (errno.EACCES, errno.EPERM, errno.EBUSY)
PAUSES = (0.01, 0.02, 0.05, 0.12, 0.3)  # seconds, half a second together


def on_cygwin() -> bool:
    """Return whether this is Cygwin or MSYS2, where Windows decides about files."""
    return sys.platform in ("cygwin", "msys")


def most_open(most: int, spare: int = 0) -> int:
    """Return how many files to keep open: half of what this process may, less `spare`."""
    try:
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):
        return 0
    return most if allowed < 0 else min(most, allowed // 2 - spare)


def open_to_read(path: str, folder: int | None = None) -> int:
    """Return a descriptor that reads `path`, leaving its access time alone where that can be.

    `folder` is a descriptor of the folder that `path` is relative to, here and below.
    """
    try:
        return os.open(path, os.O_RDONLY | _SAFELY | _NO_ATIME, dir_fd=folder)
    except PermissionError:
        return os.open(path, os.O_RDONLY | _SAFELY, dir_fd=folder)


def make_file(path: str, folder: int | None = None, mode: int = 0o600) -> int:
    """Make a file that was not there, and return a descriptor that reads and writes it."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, mode, dir_fd=folder)


def read_file(path: str, most: int, folder: int | None = None) -> tuple[bytes, os.stat_result]:
    """Return what a regular file of at most so many bytes holds. Raises OSError for any other."""
    with os.fdopen(open_to_read(path, folder), "rb") as file:
        st = os.fstat(file.fileno())
        if not modes.S_ISREG(st.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        if st.st_size > most:
            raise OSError(errno.EFBIG, f"holds {st.st_size} bytes, which no run writes", path)
        return file.read(st.st_size), st  # Cygwin pays for each byte of room that `most` has


class Folders:
    """The folders below one, opened name by name from its own descriptor; no link is followed.

    So nobody who can exchange a folder for a link can lead what is done there elsewhere. `chain`
    are the folder that was opened last and those above it, the outermost first: name, descriptor.
    """

    def __init__(self, top: str) -> None:
        # `top` itself is trusted as it was named.
        self.chain = [("", os.open(top, _FOLDER))]

    def open(self, folder: str, make: int | None = None) -> int:
        """Return a descriptor of `folder`, a path relative to the top, good until the next call.

        With `make`, a mode, what is missing is made. Raises OSError, ELOOP at a symbolic link.
        """
        names = folder.split("/") if folder else []
        while [name for name, _ in self.chain[1:]] != names[: len(self.chain) - 1]:
            os.close(self.chain.pop()[1])
        for name in names[len(self.chain) - 1 :]:
            self.chain.append((name, open_folder(name, self.chain[-1][1], make)))
        return self.chain[-1][1]

    def __del__(self) -> None:
        """Close all descriptors."""
        with suppress(AttributeError, OSError):
            while self.chain:
                os.close(self.chain.pop()[1])


def open_folder(name: str, parent: int, make: int | None = None) -> int:
    """Return a descriptor of a folder in another one, as `Folders.open` does."""
    if name in ("", ".", ".."):
        raise OSError(errno.EINVAL, "is no name of a folder", name)
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ENOENT and make is not None:
            with suppress(FileExistsError):
                os.mkdir(name, make, dir_fd=parent)
            return open_folder(name, parent)
        may_be_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        if not may_be_link or not modes.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
            raise
        text = f"{name} is a symbolic link, which is not followed"
        raise LinkError(errno.ELOOP, text, name) from None


class LinkError(OSError):
    """There is a symbolic link where a folder was looked for."""


def names_in(folder: int) -> list[str]:
    """Return the names in a folder."""
    descriptor = _listable(folder)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _listable(folder: int | str) -> int:
    # A descriptor that was opened to go through it can neither be listed nor synchronized.
    path, above = (folder, None) if isinstance(folder, str) else (".", folder)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)


def put_in_place(
    staged: str, target: str, staging: int | None = None, folder: int | None = None
) -> None:
    """Rename `staged`, which is durable already, over `target`; patient for half a second.

    `staging` and `folder` are descriptors of the folders that they are relative to. Raises
    OSError; then `target` is what it was.
    """
    patiently(
        lambda: os.replace(staged, target, src_dir_fd=staging, dst_dir_fd=folder),
        MOMENTARY if on_cygwin() else (errno.EBUSY,),
    )


def patiently(action: Callable[[], object], momentary: Collection[int]) -> None:
    """Do something again for half a second while it ends with one of these error numbers."""
    for pause in (*PAUSES, None):
        try:
            action()
            return
        except OSError as error:
            if pause is None or error.errno not in momentary:
                raise
            time.sleep(pause)


def copy_bytes(source: int, copy: int, *, is_new: bool = False) -> None:
    """Write the bytes of one file into another from its start; both are descriptors.

    Where the copy `is_new`, zeros that a sparse file is given no room for are given none there.
    """
    st, at = os.fstat(source), 0
    has_holes = is_new and getattr(st, "st_blocks", 0) * 512 < st.st_size
    while window := os.pread(source, 1 << 16 if has_holes else 1 << 20, at):
        if has_holes and window.count(0) == len(window):
            at += len(window)
        else:
            # A disk that is nearly full takes a part, and refuses at the next call.
            at += os.pwrite(copy, window, at)
    if has_holes:
        os.ftruncate(copy, at)


def begin_to_make_durable(descriptor: int) -> None:
    """Let the system begin to write a file's bytes to the disk, and do not wait for it.

    Linux does so when it is told that they are not needed (posix_fadvise(2), mm/fadvise.c); what
    is being written stays in memory all the same.
    """
    with suppress(OSError, AttributeError):  # a hint, which not every system knows
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def make_names_durable(folder: int | str) -> None:
    """Wait until the names in a folder are on the disk; on Cygwin this does nothing."""
    if on_cygwin():
        return
    descriptor = _listable(folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a folder; there a rename is durable at once.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_file(
    path: str, data: bytes, temporary: str, *, folder: int | None = None, staging: int | None = None
) -> None:
    """Replace the file `path` by one that holds `data`; old or new after a crash, never mixed.

    `temporary`, relative to `staging`, is a name on the same file system that nobody else uses; it
    is gone afterwards. Raises OSError.
    """
    descriptor = make_file(temporary, staging, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        put_in_place(temporary, path, staging, folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=staging)
        raise
    make_names_durable(os.path.dirname(path) or "." if folder is None else folder)
