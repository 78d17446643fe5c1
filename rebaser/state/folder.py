"""The folder in which a tree's snapshot, its run records and its staging folder are."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import rebaser.files as files
from cygwin.values import NamedTuple
from rebaser.errors import WHOLE, RebaserError, advice, suppress
from rebaser.scan import RUNS, STATE
from rebaser.scan import snapshot as snapshots
from rebaser.scan.snapshot import Snapshot
from rebaser.state import MARK, NEW, NOTE, PROBE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from locks.flock import Flock
    from rebaser.state.staging import StagingFolder

SNAPSHOT = "seen"
STAGING = "staging"
OWN_LOCK = "state.lock"  # keeps apart the runs that their caller's lock lets in

LARGEST_SNAPSHOT = 256 << 20  # bytes; a tree of a million DLLs has 130 MB

# Windows keeps the name of what was removed while anybody has it open, a killed program too.
_GOING = (errno.EEXIST, errno.ENOTEMPTY, *files.MOMENTARY) if files.on_cygwin() else ()

# Nobody waits longer than this for the file system's clock to tick (FAT: two seconds).
LONGEST_TICK = 0.06  # seconds
# The tick of a clock that was not seen to tick: FAT's, the coarsest there is, and a bit.
UNSEEN_TICK = 2_100_000_000  # nanoseconds
# Times may be finer than what they are made from: the kernel's clock ticks every 10 ms at the most
# (HZ=100), that of Windows every 15.6 ms.
LEAST_TICK = 20_000_000  # nanoseconds


class StateError(RebaserError):
    """The state folder cannot be used."""


class _Telling:
    """Raises StateError for an OSError, with what cannot be done and how all is left."""

    def __init__(self, what: str, left: str = "nothing was changed") -> None:
        self._what, self._left = what, left

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise StateError(
                f"{self._what} ({error.strerror}); {self._left}: {advice(error)}, or name another "
                "place with --state-dir and --lock-file"
            ) from error


class State:
    """The state folder of one tree. Everything but reading needs the exclusive lock.

    Inside the tree it is opened folder by folder, and no symbolic link is followed, whoever made
    it; outside, it is trusted as it was named. What it holds is named relative to it.
    """

    def __init__(self, folder: str, root: str) -> None:
        self.folder = folder
        self.root = root
        self.snapshot_file = f"{folder}/{SNAPSHOT}"
        self.runs = f"{folder}/{RUNS}"
        self.own_lock_file = f"{folder}/{OWN_LOCK}"
        self.staging: StagingFolder | None = None
        top = root.rstrip("/") + "/"
        self.is_inside = folder.startswith(top)
        self._top, self._below = (root, folder[len(top) :]) if self.is_inside else (folder, "")
        self._folders: files.Folders | None = None
        self._loaded: tuple[tuple[int, ...], Snapshot] | None = None

    def make_home(self, below: str = "") -> None:
        """Make the folder itself, or one in it, or find it anew. Raises StateError."""
        self._folders = None
        with _Telling(f"{self.folder}/{below}".rstrip("/") + ": the folder cannot be made"):
            if not self.is_inside:
                os.makedirs(self.folder, self._mode(), exist_ok=True)
            self.open(below, self._mode())

    def make(self) -> None:
        """Make the folders and clear away what a killed run left. Raises StateError."""
        from rebaser.state.staging import StagingFolder

        self.make_home()
        self.staging = None
        path = f"{self.folder}/{STAGING}"

        def make_anew() -> None:
            with suppress(FileNotFoundError):
                self._remove_staging()
            self.staging = StagingFolder(path, self.open())

        with _Telling(f"{path}, where copies are made, cannot be made anew"):
            files.patiently(make_anew, _GOING)
        self.make_home(RUNS)

    def open_lock(self, path: str, *, create: bool = True) -> Flock:
        """Open a lock file, made with its folders; in the tree no link on the way is followed.

        Raises LockFileError, and StateError for the folder of a lock in the tree.
        """
        from locks.flock import Flock

        top = self.root.rstrip("/") + "/"
        folder = os.path.dirname(path)
        if not folder.startswith(top):
            return Flock.open(path, create=create, make_parents=True)
        with _Telling(f"{folder}: the folder cannot be made"):
            folders = files.Folders(self.root)
            at = folders.open(folder[len(top) :], self._mode() if create else None)
        return Flock.open(path, create=create, dir_fd=at)

    def _mode(self) -> int:
        # Who may write the root may write its state, and nobody else: find_tree believes it then.
        return 0o755 | os.stat(self.root).st_mode & 0o022

    def open(self, below: str = "", make: int | None = None) -> int:
        """Return a descriptor of the folder, or of one in it, as `Folders.open` does."""
        if self._folders is None:
            self._folders = files.Folders(self._top)
        return self._folders.open("/".join(filter(None, (self._below, below))), make)

    def was_left(self) -> bool:
        """Return whether a killed run left its staging folder behind.

        To be asked with the lock held, exclusive or shared: a live run holds it exclusively.
        """
        with suppress(OSError):
            names = files.names_in(self.open(STAGING))
            return not names or MARK in names
        return False

    def clear_staging(self) -> None:
        """Remove the staging folder, and those that it says lie on other file systems.

        Where that fails, it is left to the next run.
        """
        if self.staging is not None:
            # What was interrupted may have it still, and Wine keeps a folder that is open.
            self.staging.close()
            self.staging = None
        with suppress(OSError):
            files.patiently(self._remove_staging, _GOING)

    def _remove_staging(self) -> None:
        from rebaser.state.staging import remove_staging

        notes = [name for name in files.names_in(self.open(STAGING)) if name.startswith(NOTE)]
        for name in notes:
            # A note may say anything: what it names is removed only if a run has made it.
            with suppress(OSError, ValueError):
                folder = os.fsdecode(self.read(f"{STAGING}/{name}", 1 << 16)[0])
                parent, _, name = folder.rpartition("/")
                if name.startswith(f"{STAGING}-") and f"/{parent}".endswith(f"/{STATE}"):
                    folders = files.Folders(self.root)
                    above = folders.open(parent)
                    with suppress(FileNotFoundError):
                        remove_staging(name, above)
                    if not files.names_in(above):
                        os.rmdir(STATE, dir_fd=folders.chain[-2][1])
        remove_staging(STAGING, self.open())

    def read(self, path: str, most: int) -> tuple[bytes, os.stat_result]:
        """Return what a regular file of at most so many bytes holds. Raises OSError."""
        below, _, name = path.rpartition("/")
        return files.read_file(name, most, self.open(below))

    def write(self, path: str, data: bytes) -> None:
        """Replace a file. Raises StateError; then the old one is still there."""
        below, _, name = path.rpartition("/")
        with _Telling(f"{self.folder}/{path} cannot be written", WHOLE):
            assert self.staging is not None
            staging = self.staging.descriptor
            files.write_file(name, data, NEW, folder=self.open(below), staging=staging)

    # The snapshot of what was seen.

    def load_snapshot(self, warn: Callable[[str], None]) -> Snapshot:
        """Return what was seen last; nothing, with one warning, where that is lost."""
        try:
            folder = self.open()
            st = os.stat(SNAPSHOT, dir_fd=folder, follow_symlinks=False)
            # Look, then look again: most times it is the same file still.
            if self._loaded is None or self._loaded[0] != snapshots.of_stat(st):
                data, st = files.read_file(SNAPSHOT, LARGEST_SNAPSHOT, folder)
                self._loaded = snapshots.of_stat(st), snapshots.load(data)
            return self._loaded[1]
        except FileNotFoundError:
            return snapshots.blank()
        except OSError as error:
            how = f"read ({error.strerror})"
        except (snapshots.SnapshotLostError, MemoryError) as error:
            how = f"used ({str(error) or 'no memory for it'})"
        warn(f"{self.snapshot_file} cannot be {how}; every DLL is read again")
        return snapshots.blank()

    def save_snapshot(self, snapshot: Snapshot, now: FileSystemTime) -> None:
        """Write what was seen by a scan that began at `now`. Raises StateError."""
        trusted = snapshots.trusted(
            snapshot, now.nanoseconds, now.device, folders_move=now.folders_move
        )
        self.write(SNAPSHOT, snapshots.dump(trusted))

    def time(self) -> FileSystemTime:
        """Return the file system's own time, once it is later than that of all earlier changes.

        Waits for a tick of its clock, but not longer than LONGEST_TICK. Raises StateError.
        """
        assert self.staging is not None
        folder = self.staging.descriptor
        with _Telling(f"{self.staging.path} cannot be written", WHOLE):
            before = os.fstat(folder)
            now = first = _touch(folder)
            deadline, is_over = time.monotonic() + LONGEST_TICK, False
            while now <= first and not is_over:
                is_over = time.monotonic() > deadline  # on a busy machine before the second touch
                time.sleep(0.001)
                now = _touch(folder)
            after = os.fstat(folder)
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


def _touch(folder: int) -> int:
    """Make a probe, for a moment, and return its time in nanoseconds."""
    descriptor = files.make_file(PROBE, folder)
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
        os.unlink(PROBE, dir_fd=folder)
