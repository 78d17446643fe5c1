"""The scan: which files of a tree are of interest, and what each of them is."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from rebaser.reading import open_to_read
from rebaser.scan import snapshot as snapshots
from rebaser.scan.snapshot import Folder, Seen, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cygwin.image import Image

SUFFIXES = (".dll", ".so", ".fas", ".oct", ".mex", ".eln", ".pyd")

# Below these nothing of the tree's own programs is loaded: SageMath's build folder, a cross
# compiler's target, rebaser's state.
PRUNED_PATHS = ("var/tmp", "sys-root/mingw", "var/lib/rebaser")
PRUNED_NAME = ".rebaser"
# MSYS2's native prefixes at the top of its root: nothing forks there, and all have DYNAMIC_BASE.
PRUNED_AT_TOP = frozenset(("mingw32", "mingw64", "ucrt64", "clang32", "clang64", "clangarm64"))
# What a whole system has at its top that is no folder of files: processes, devices, and on Cygwin
# all drives and the registry (/proc/registry).
SYSTEMS_OWN = frozenset(("proc", "sys", "dev", "cygdrive"))


# What is remembered of a file or folder that could not be looked at: nothing, so it is looked at
# again next time, although the folder around it does not change.
UNSEEN = Seen(0, snapshots.NEVER, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_UNLISTED = Folder((snapshots.NEVER, 0, 0, 0), [], [])


class Rules(NamedTuple):
    """What the scan looks at: suffixes beside the usual ones, and globs of paths to leave out."""

    suffixes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    def below(self, scope: str) -> Rules:
        """Return the rules of a part of a tree as rules of the tree: globs are relative to it."""
        if not scope or not self.excludes:
            return self
        from glob import escape

        return self._replace(excludes=tuple(escape(scope) + glob for glob in self.excludes))

    def key(self) -> str:
        """Return a text that differs where the rules do."""
        return repr((SUFFIXES, self.suffixes, self.excludes))


class Scan(NamedTuple):
    """What a scan found.

    `snapshot` is the tree as it is now. `failed` are (path, reason) of what could not be looked at.
    `unchanged` says that everything is as it was remembered. `images` are the images that this
    scan read, by path, up to a limit.
    """

    snapshot: Snapshot
    failed: list[tuple[str, str]]
    unchanged: bool
    images: dict[str, Image]


# The images that a scan read are kept, so that a moved one need not be read twice, until their
# relocation tables take about this many bytes: a tree may hold any number of them.
KEPT_BYTES = 16 << 20


def scan(
    root: str,
    rules: Rules | None = None,
    snapshot: Snapshot | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """Look at the tree below `root`; what is as `snapshot` has it is not read again.

    A file is as remembered when size, times, inode and device are, and its ImageBase field too:
    Cygwin's rebase changes neither size nor, usually, times. A folder, when its times, inode and
    device are. `progress` is told the number of files looked at.
    """
    return _Scanner(root, rules or Rules(), snapshot or snapshots.blank(), None, progress).scan()


def scan_until(
    stop_at: Callable[[str, Seen, str], bool],
    root: str,
    rules: Rules,
    snapshot: Snapshot,
    *,
    progress: Callable[[int], None] | None = None,
) -> Scan | None:
    """Look at the tree as `scan` does, but end as soon as `stop_at` returns true: then with None.

    It is asked about each image that had to be read: its path, what was seen, its fault.
    """
    try:
        return _Scanner(root, rules, snapshot, stop_at, progress).scan()
    except _StoppedError:
        return None


def scan_folders(root: str, rules: Rules, snapshot: Snapshot, folders: Iterable[str]) -> Snapshot:
    """Return `snapshot` with these folders as they are now; all else stays as `snapshot` has it.

    `folders` are paths relative to the root that `snapshot` has, seen under the same rules.
    """
    scanner = _Scanner(root, rules, snapshot, None, None)
    found = dict(snapshot.folders)
    for path in folders:
        listed = scanner.list(path)
        if listed is None:
            continue
        found[path] = scanner.files(path, listed[0])
        # Else the next scan would not meet a new one: the times of `path` are known by now.
        for new, folder in scanner.new_below(path, listed[1]):
            found[new] = scanner.files(new, folder)
    return Snapshot(snapshot.rules, "", found, list(scanner.texts))


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _StoppedError(Exception):
    pass


class _Scanner:
    def __init__(
        self,
        root: str,
        rules: Rules,
        snapshot: Snapshot,
        stop_at: Callable[[str, Seen, str], bool] | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.top = root.rstrip("/") + "/"
        self.rules = rules
        self.suffixes = SUFFIXES + tuple(suffix.lower() for suffix in rules.suffixes)
        self.comparable = snapshot.rules == rules.key()
        self.snapshot = snapshot
        self.stop_at = stop_at
        self.progress = progress
        self.changed = False
        self.failed: list[tuple[str, str]] = []
        self.images: dict[str, Image] = {}
        self.room = KEPT_BYTES
        self.texts = {text: number for number, text in enumerate(snapshot.texts)}

    def scan(self) -> Scan:
        """Look at every folder, then at every file of interest in it."""
        folders = dict(self.folders())
        found = {
            path: self.files(path, folder) if folder.names else folder
            for path, folder in folders.items()
        }
        if not self.changed:
            return Scan(self.snapshot, self.failed, True, self.images)
        snapshot = Snapshot(self.rules.key(), "", found, list(self.texts))
        return Scan(snapshot, self.failed, False, self.images)

    # Folders.

    def folders(self) -> Iterator[tuple[str, Folder]]:
        """Yield every folder with its files of interest as remembered, parents first."""
        remembered = self.snapshot.folders
        if not self.comparable or "" not in remembered:
            self.changed = True
            yield from self.walk("")
            return
        lstat = os.lstat
        top = self.top
        listed: dict[str, set[str]] = {}  # the subfolders of each folder that was listed again
        for path, folder in remembered.items():
            if listed:
                parent, _, name = path.rpartition("/")
                if path and parent in listed and name not in listed[parent]:
                    listed[path] = set()  # gone, and so is all below it
                    continue
            try:
                st = lstat(top + path)
            except OSError as error:
                listed[path] = set()
                if self.unlisted(path, error):
                    yield path, _UNLISTED
                continue
            if (st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev) == folder.stat:
                yield path, folder
                continue
            self.changed = True
            listed[path] = set()
            result = self.list(path)
            if result is None:
                continue
            folder, subfolders = result
            listed[path] = set(subfolders)
            yield path, folder
            yield from self.new_below(path, subfolders)

    def unlisted(self, path: str, error: OSError) -> bool:
        """Note a folder that cannot be looked at; one that is gone by now is nobody's failure."""
        self.changed = True
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return False
        self.failed.append(
            (
                path or ".",
                f"cannot be listed ({error.strerror}): what lies below it was not looked at; "
                "make it readable",
            )
        )
        return True

    def new_below(self, path: str, subfolders: Iterable[str]) -> Iterator[tuple[str, Folder]]:
        """List those subfolders that are not remembered, and everything below them."""
        for name in subfolders:
            below = _inside(path, name)
            if below not in self.snapshot.folders:
                yield from self.walk(below)

    def walk(self, start: str) -> Iterator[tuple[str, Folder]]:
        """List `start` and everything below it."""
        stack = [start]
        while stack:
            path = stack.pop()
            result = self.list(path)
            if result is None:
                continue
            folder, subfolders = result
            yield path, folder
            stack += [_inside(path, name) for name in reversed(subfolders)]

    def list(self, path: str) -> tuple[Folder, list[str]] | None:
        """List one folder; a file that is remembered keeps what was seen of it."""
        self.changed = True
        where = self.top + path
        known = self.snapshot.folders.get(path)
        seen = dict(zip(known.names, known.files)) if known else {}
        names = []
        subfolders = []
        try:
            # Its times are read before its names: what comes later changes the times again.
            st = os.lstat(where)
            if not modes.S_ISDIR(st.st_mode):
                return None
            with os.scandir(where) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not self.pruned(path, entry.name):
                            subfolders.append(entry.name)
                    elif (
                        entry.name.lower().endswith(self.suffixes)
                        and entry.is_file(follow_symlinks=False)
                        and not (self.rules.excludes and self.excluded(path, entry.name))
                    ):
                        names.append(entry.name)
        except OSError as error:
            return (_UNLISTED, []) if self.unlisted(path, error) else None
        names.sort()
        subfolders.sort()
        times = (st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev)
        return Folder(times, names, [seen.get(name, UNSEEN) for name in names]), subfolders

    def pruned(self, path: str, name: str) -> bool:
        if name == PRUNED_NAME or (not path and name in PRUNED_AT_TOP):
            return True
        if not path and name in SYSTEMS_OWN and self.is_systems_own(name):
            return True
        full = _inside(path, name)
        if full in PRUNED_PATHS or full.endswith("/sys-root/mingw"):
            return True
        return bool(self.rules.excludes) and self.excluded(path, name)

    def is_systems_own(self, name: str) -> bool:
        """Return whether a folder at the top is no part of the tree, but the system's."""
        if self.top == "/":
            return True
        try:
            return os.lstat(self.top + name).st_dev != os.lstat(self.top).st_dev
        except OSError:
            return False

    def excluded(self, path: str, name: str) -> bool:
        from fnmatch import fnmatchcase

        full = _inside(path, name)
        return any(fnmatchcase(full, glob) for glob in self.rules.excludes)

    # Files.

    def files(self, path: str, folder: Folder) -> Folder:
        """Look at the files of one folder; return the folder as it is now."""
        read, fstat, close = os.pread, os.fstat, os.close
        top = f"{self.top}{path}/" if path else self.top
        names = []
        rows: list[tuple[int, ...]] = []
        for name, row in zip(folder.names, folder.files):
            try:
                descriptor = open_to_read(top + name)
            except OSError as error:
                if self.unread(path, name, error):
                    names.append(name)
                    rows.append(UNSEEN)
                continue
            try:
                st = fstat(descriptor)
                if (
                    st.st_mtime_ns == row[1]
                    and st.st_size == row[0]
                    and st.st_ctime_ns == row[2]
                    and st.st_ino == row[3]
                    and st.st_dev == row[4]
                    and (
                        not row[7]
                        or int.from_bytes(read(descriptor, row[7], row[11]), "little") == row[9]
                    )
                ):
                    new_row = row if st.st_nlink == row[5] else self.relinked(row, st.st_nlink)
                elif modes.S_ISREG(st.st_mode):
                    new_row = self.look(_inside(path, name), descriptor, st)
                else:
                    self.changed = True
                    continue
            except OSError as error:
                if not self.unread(path, name, error):
                    continue
                new_row = UNSEEN
            finally:
                close(descriptor)
            names.append(name)
            rows.append(new_row)
        if self.progress:
            self.progress(len(names))
        return folder if rows == folder.files else Folder(folder.stat, names, rows)

    def unread(self, path: str, name: str, error: OSError) -> bool:
        """Note a file that cannot be looked at; one that is gone by now is nobody's failure."""
        import errno

        self.changed = True
        # ELOOP: it became a symbolic link, which is not followed.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        self.failed.append(
            (
                _inside(path, name),
                f"cannot be read ({error.strerror}): it stays as it is; make it readable",
            )
        )
        return True

    def relinked(self, row: tuple[int, ...], links: int) -> tuple[int, ...]:
        self.changed = True
        return Seen._make(row)._replace(links=links)

    def look(self, path: str, descriptor: int, st: os.stat_result) -> tuple[int, ...]:
        """Read what a file is."""
        from cygwin.errors import NotAnImage
        from cygwin.image import read_image

        self.changed = True
        image = None
        fault: str | None
        try:
            image = read_image(descriptor, st.st_size)
            fault = image.fault
        except NotAnImage as error:
            fault = str(error)
        seen = Seen(
            size=st.st_size,
            mtime_ns=st.st_mtime_ns,
            ctime_ns=st.st_ctime_ns,
            inode=st.st_ino,
            device=st.st_dev,
            links=st.st_nlink,
            machine=image.machine if image else 0,
            base_width=image.base_width if image else 0,
            flags=flags_of(image) if image else 0,
            base=image.base if image else 0,
            image_size=image.size if image else 0,
            base_offset=image.base_offset if image else 0,
            fault=self.texts.setdefault(fault or "", len(self.texts)),
        )
        if image:
            taken = 1000 + sum(200 + (b.marks or 0).bit_length() // 8 for b in image.blocks)
            if taken <= self.room:
                self.images[path] = image
                self.room -= taken
        if self.stop_at and self.stop_at(path, seen, fault or ""):
            raise _StoppedError
        return seen


def look_at_one(folder: str, name: str) -> tuple[Snapshot, list[tuple[str, str]]]:
    """Look at one file whatever its suffix; return a snapshot of it alone, and what failed."""
    scanner = _Scanner(folder, Rules(), snapshots.blank(), None, None)
    found = scanner.files("", Folder((0, 0, 0, 0), [name], [UNSEEN]))
    return Snapshot("", "", {"": found}, list(scanner.texts)), scanner.failed


def flags_of(image: Image) -> int:
    """Return the flags of `Seen` for an image."""
    from cygwin.address_space import ARENA
    from cygwin.image import NET_ONLY

    loads = not image.truncated and image.fault != NET_ONLY
    forks = loads and image.is_dll and image.machine in ARENA
    return (
        (snapshots.DYNAMIC_BASE if image.dynamic_base else 0)
        | (snapshots.SIGNED if image.signed else 0)
        | (snapshots.HIGH_ENTROPY if image.high_entropy_va else 0)
        | (snapshots.FORKS if forks else 0)
    )
