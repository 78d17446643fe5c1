"""The folder in which a tree's snapshot, its run records and its staging folder are."""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from rebaser.errors import RebaserError
from rebaser.files import write_file
from rebaser.reading import open_to_read
from rebaser.scan import snapshot as snapshots
from rebaser.scan.snapshot import Snapshot

SNAPSHOT = "seen"
STAGING = "staging"
RUNS = "runs"
LOCK = "state.lock"

# Nobody waits longer than this for the file system's clock to tick (FAT: two seconds).
LONGEST_TICK = 0.06  # seconds
# The tick of a clock that was not seen to tick: FAT's, the coarsest there is, and a bit.
UNSEEN_TICK = 2_100_000_000  # nanoseconds
# Times may be finer than what they are made from: the kernel's clock ticks every 10 ms at the most
# (HZ=100), that of Windows every 15.6 ms.
LEAST_TICK = 20_000_000  # nanoseconds


class StateError(RebaserError):
    """The state folder cannot be used."""


def make_folder(path: str, owner_of: str) -> None:
    """Make the folder `path` and those above it, unless they are there.

    A symbolic link in its place is followed only if it belongs to root, to us, or to the owner of
    `owner_of`: anybody else could have planted it to have us write elsewhere. Raises StateError.
    """
    try:
        os.makedirs(path, exist_ok=True)
        st = os.lstat(path)
        if modes.S_ISLNK(st.st_mode) and st.st_uid not in (
            0,
            os.geteuid(),
            os.stat(owner_of).st_uid,
        ):
            raise StateError(
                f"{path} is a symbolic link that user {st.st_uid} made: it was not followed; "
                "remove it, or name another folder"
            )
    except OSError as error:
        raise StateError(
            f"{path}: the folder cannot be made ({error.strerror}); nothing was changed. "
            "Make ROOT writable, or name another place with --state-dir and --lock-file"
        ) from error


class State:
    """The state folder of one tree. Everything but reading needs the exclusive lock."""

    def __init__(self, folder: str, root: str) -> None:
        self.folder = folder
        self.root = root
        self.snapshot_file = f"{folder}/{SNAPSHOT}"
        self.staging = f"{folder}/{STAGING}"
        self.runs = f"{folder}/{RUNS}"
        self.lock_file = f"{folder}/{LOCK}"
        self._loaded: tuple[tuple[int, ...], Snapshot] | None = None

    def make_home(self) -> None:
        """Make the folder itself. Raises StateError."""
        make_folder(self.folder, self.root)

    def make(self) -> None:
        """Make the folders and clear away what a killed run left. Raises StateError."""
        self.make_home()
        try:
            self._remove_staging()
        except OSError as error:
            raise StateError(
                f"{self.staging}, which a killed run left, cannot be removed ({error.strerror}); "
                "nothing was changed. Make ROOT writable, and run rebaser as its owner"
            ) from error
        make_folder(self.staging, self.root)
        make_folder(self.runs, self.root)

    def was_left(self) -> bool:
        """Return whether a killed run left its staging folder behind.

        To be asked with the lock held, exclusive or shared: a live run holds it exclusively.
        """
        return os.path.lexists(self.staging)

    def clear_staging(self) -> None:
        """Remove the staging folder, and those that it says lie on other file systems.

        Where that fails, it is left to the next run.
        """
        with suppress(OSError):
            self._remove_staging()

    def _remove_staging(self) -> None:
        with suppress(OSError):
            os.rmdir(self.staging)  # as a run that ended well leaves it: empty
        if not os.path.lexists(self.staging):
            return
        import shutil  # 2 ms

        for folder in self._elsewhere():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.rmdir(os.path.dirname(folder))
            except OSError:
                pass
        if os.path.islink(self.staging):
            os.unlink(self.staging)
        else:
            shutil.rmtree(self.staging)

    def note_staging_elsewhere(self, folder: str) -> None:
        """Remember a staging folder on another file system, to be cleared away with ours."""
        note = f"{self.staging}/elsewhere-{len(self._elsewhere())}"
        write_file(note, os.fsencode(folder), f"{self.staging}/new")

    def _elsewhere(self) -> list[str]:
        folders = []
        try:
            notes = [name for name in os.listdir(self.staging) if name.startswith("elsewhere-")]
            for name in notes:
                with open(f"{self.staging}/{name}", "rb") as file:
                    folder = os.fsdecode(file.read())
                if self._may_be_ours(folder):
                    folders.append(folder)
        except OSError:
            pass
        return folders

    def _may_be_ours(self, folder: str) -> bool:
        """Return whether a run can have made this staging folder: no other is ever removed."""
        parent, name = os.path.split(folder)
        return (
            name.startswith(f"{STAGING}-")
            and os.path.basename(parent) == ".rebaser"
            and folder.startswith(self.root.rstrip("/") + "/")
            and os.path.realpath(folder) == folder
        )

    def read(self, path: str, most: int) -> bytes:
        """Return what a state file holds. Raises OSError, also for more than `most` bytes."""
        with os.fdopen(open_to_read(path), "rb") as file:
            st = os.fstat(file.fileno())
            if not modes.S_ISREG(st.st_mode) or st.st_size > most:
                raise OSError(errno.EINVAL, "it is no file of rebaser's", path)
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        """Replace a state file. Raises StateError; then the old one is still there."""
        try:
            write_file(path, data, f"{self.staging}/new")
        except OSError as error:
            raise StateError(
                f"{path} cannot be written ({error.strerror}); the old one is kept"
            ) from error

    # The snapshot of what was seen.

    def load_snapshot(self, warn: Callable[[str], None]) -> Snapshot:
        """Return what was seen last; nothing, with one warning, where that is lost."""
        try:
            descriptor = open_to_read(self.snapshot_file)
        except FileNotFoundError:
            return snapshots.blank()
        except OSError as error:
            warn(
                f"{self.snapshot_file} cannot be read ({error.strerror}); every image is read again"
            )
            return snapshots.blank()
        try:
            with os.fdopen(descriptor, "rb") as file:
                st = os.fstat(descriptor)
                which = (st.st_ino, st.st_dev, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
                if st.st_size > snapshots.LARGEST:
                    raise snapshots.SnapshotLostError(f"it has {st.st_size:,} bytes")
                # Look, then look again: most times it is the same file still.
                if self._loaded is None or self._loaded[0] != which:
                    self._loaded = which, snapshots.load(file.read())
                return self._loaded[1]
        except (OSError, snapshots.SnapshotLostError) as error:
            warn(f"{self.snapshot_file} cannot be used ({error}); every image is read again")
            return snapshots.blank()

    def save_snapshot(self, snapshot: Snapshot, now: FileSystemTime) -> None:
        """Write what was seen by a scan that began at `now`. Raises StateError."""
        if not now.folders_move:
            snapshot = snapshots.without_times(snapshot, files=False)
        trusted = snapshots.trusted(snapshot, now.nanoseconds, now.device)
        self.write(self.snapshot_file, snapshots.dump(trusted))

    def time(self) -> FileSystemTime:
        """Return the file system's own time, once it is later than that of all earlier changes.

        Waits for a tick of its clock, but not longer than LONGEST_TICK. Raises StateError.
        """
        probe = f"{self.staging}/probe"
        try:
            before = os.lstat(self.staging)
            first = _touch(probe)
            deadline = time.monotonic() + LONGEST_TICK
            now = first
            while now <= first and time.monotonic() < deadline:
                time.sleep(0.001)
                now = _touch(probe)
            after = os.lstat(self.staging)
            os.unlink(probe)
        except OSError as error:
            raise StateError(f"{self.staging} cannot be written ({error.strerror})") from error
        # Where the clock did not tick in time nothing is known of what happened in this tick.
        # A step of a clock is a tick, or several.
        tick = max(now - first, LEAST_TICK) if now > first else UNSEEN_TICK
        return FileSystemTime(now, after.st_mtime_ns > before.st_mtime_ns, after.st_dev, tick)


class FileSystemTime(NamedTuple):
    """The own time of the file system `device`, in nanoseconds; its clock steps by `tick` at most.

    `folders_move`: its folders' times change when names come and go; FAT's do not.
    """

    nanoseconds: int
    folders_move: bool
    device: int
    tick: int = UNSEEN_TICK

    def before(self, seconds: float) -> FileSystemTime:
        """Return a time that was certainly past so many seconds before this one was taken."""
        return self._replace(nanoseconds=self.nanoseconds - int(seconds * 1e9) - self.tick)


def _touch(path: str) -> int:
    """Make a new file in place of `path` and return its time in nanoseconds."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
