"""The scan: which files of a tree are of interest, and what each of them is."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable, Iterator
from itertools import chain

from cygwin.address_space import ARENA
from cygwin.fault import Fault, NotAnImage
from cygwin.values import NamedTuple
from rebaser.errors import advice, suppress
from rebaser.files import most_open, open_to_read
from rebaser.scan import LOCK, RUNS, STATE, STATE_IN_VAR
from rebaser.scan import snapshot as snapshots
from rebaser.scan.skip import is_pruned, is_state
from rebaser.scan.snapshot import Folder, Seen, Snapshot, of_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cygwin.image import Image

    # Asked about an image that had to be read (its path, what was seen) whether it shows
    # work; after the first that does it is asked no more. What it raises ends the scan.
    AtFirstWork = Callable[[str, Seen], bool]

SUFFIXES = (".dll", ".so", ".fas", ".oct", ".mex", ".eln", ".pyd")
PROGRAM = ".exe"

# What is remembered of a file or folder that could not be looked at: nothing, so it is looked at
# again next time, although the folder around it does not change.
UNSEEN = Seen(0, snapshots.NEVER, *[0] * 13)
UNLISTED = Folder((snapshots.NEVER, 0, 0, 0), [], [])


class Rules(NamedTuple):
    """What the scan looks at: files with suffixes beside the usual ones."""

    suffixes: tuple[str, ...] = ()


class Scan(NamedTuple):
    """What a scan found.

    `snapshot` is the tree as it is now. `failed` are (path, reason) of what could not be looked at.
    `unchanged` says that everything is as it was remembered. `images` are the images that this
    scan read, by path, up to a limit. `inner` are the folders below the root that are trees of
    rebaser's themselves.
    """

    snapshot: Snapshot
    failed: list[tuple[str, str]]
    unchanged: bool
    images: dict[str, Image]
    inner: tuple[str, ...]


# The images that a scan read are kept, so that a moved one need not be read twice, until their
# relocation tables take about this many bytes: a tree may hold any number of them.
KEPT_BYTES = 16 << 20
MOST_OPEN = 2000


def scan(
    root: str,
    rules: Rules | None = None,
    snapshot: Snapshot | None = None,
    *,
    at_first_work: AtFirstWork | None = None,
    progress: Callable[[int], None] | None = None,
    open_files: dict[str, int] | None = None,
) -> Scan:
    """Look at the tree below `root`, first at folders that changed since `snapshot`.

    What is as it has it is not read again: a file when size, times, inode and device are, and its
    ImageBase and DllCharacteristics too, for Cygwin's rebase changes neither size nor, usually,
    times; a folder when its times, inode and device are. `progress` is told the number of files
    looked at. `open_files` is given descriptors of the images that were read and that can be
    moved, by path, which are the caller's to close, however the scan ends.
    """
    scanner = _Scanner(root, rules or Rules(), snapshot or snapshots.blank())
    scanner.at_first_work, scanner.progress = at_first_work, progress
    scanner.open_files = open_files
    return scanner.scan()


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _Scanner:
    at_first_work: AtFirstWork | None = None
    progress: Callable[[int], None] | None = None
    open_files: dict[str, int] | None = None

    def __init__(self, root: str, rules: Rules, snapshot: Snapshot) -> None:
        self.top = root.rstrip("/") + "/"
        self.rules = repr((SUFFIXES, rules.suffixes))  # differs where the rules do
        self.suffixes = SUFFIXES + tuple(map(str.lower, rules.suffixes))
        self.endings = (*self.suffixes, PROGRAM)
        self.comparable = snapshot.rules == self.rules and "" in snapshot.folders
        self.host = os.uname().nodename
        if snapshot.host != self.host:
            # What another machine saw was proven by its clock, and its inodes may be others.
            snapshot = snapshots.trusted(snapshot, snapshots.NEVER, 0)
        self.snapshot = snapshot
        self.changed = False
        self.failed: list[tuple[str, str]] = []
        self.images: dict[str, Image] = {}
        self.room = KEPT_BYTES  # for more images
        self.details = {text: number for number, text in enumerate(snapshot.details)}
        self.states = set(snapshot.inner)  # folders that may be of trees below this one
        self.programs: dict[str, list[str]] = {}  # of each folder that was listed

    def scan(self) -> Scan:
        """Look at every folder, and at its files of interest as soon as it is known."""
        found = {}
        for path, folder in self.folders():
            now = self.files(path, folder) if folder.names else folder
            if len(now.names) < len(folder.names) and (listed := self.list(path)):
                now = self.files(path, listed[0])  # see `folders`
            found[path] = now
        snapshot = self.snapshot_of(found) if self.changed else self.snapshot
        inner = tuple(
            state[: -1 - len(STATE if state.endswith(STATE) else STATE_IN_VAR)]
            for state in snapshot.inner
            if any(os.path.lexists(f"{self.top}{state}/{mark}") for mark in (LOCK, RUNS))
        )
        return Scan(snapshot, self.failed, not self.changed, self.images, inner)

    def snapshot_of(self, found: dict[str, Folder]) -> Snapshot:
        """Return what was found, with what was left when nothing but its folders has changed."""
        before = self.snapshot
        known = (p for p in before.programs if p.rpartition("/")[0] not in self.programs)
        programs = [*known, *chain.from_iterable(self.programs.values())]
        there = (path for path in programs if path.rpartition("/")[0] in found)
        now = Snapshot(
            self.rules,
            "",
            dict(sorted(found.items())),  # parents first, whatever was looked at first
            list(self.details),
            self.host,
            tuple(sorted(state for state in self.states if os.path.isdir(self.top + state))),
            programs=tuple(sorted(there, key=lambda path: path.rpartition("/"))),
        )
        is_as_before = self.comparable and not self.failed and now.inner == before.inner
        images, remembered = (
            {path: folder[1:] for path, folder in one.folders.items() if folder.names}
            for one in (now, before)
        )
        if not is_as_before or images != remembered:
            return now
        return now._replace(
            settled=before.settled, overlaps=before.overlaps, pending=before.pending
        )

    # Folders.

    def folders(self) -> Iterator[tuple[str, Folder]]:
        """Yield every folder with its files of interest as remembered, first those that changed.

        What is gone from a folder that has not changed may be there by another name, so that one is
        listed again: Cygwin says names in the characters of the locale.
        """
        known = self.snapshot.folders if self.comparable else {}
        renamed: set[str] = set()
        again: dict[str, set[str]] = {}  # the subfolders of each that was listed again
        unchanged = []
        stack = list(reversed(known)) or [""]
        while stack:
            path = stack.pop()
            if again and path and path not in again.get(path.rpartition("/")[0], (path,)):
                again[path] = set()  # gone, and so is all below it
            elif path in known and path not in renamed and self.is_as_seen(path, known[path]):
                unchanged.append(path)
            else:
                listed = self.list(path)
                again[path] = set(listed[1]) if listed else set()
                if listed:
                    yield path, listed[0]
                    stack += [new for new in reversed(listed[1]) if new not in known]
                elif (parent := path.rpartition("/")[0]) in unchanged:
                    unchanged.remove(parent)
                    renamed.add(parent)
                    stack.append(parent)
        for path in unchanged:
            yield path, known[path]

    def is_as_seen(self, path: str, folder: Folder) -> bool:
        """Return whether a folder has its times, inode and device still."""
        with suppress(OSError):
            return of_stat(os.lstat(self.top + path))[1:] == folder.stat
        return False

    def missed(self, path: str, error: OSError, what: str, left: str) -> bool:
        """Note what cannot be done, and is left; what is gone by now is nobody's failure: False."""
        self.changed = True
        # ELOOP: a file became a symbolic link, which is not followed.
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        if not gone:
            why = f"cannot be {what} ({error.strerror}): {left}; {advice(error)}"
            self.failed.append((path, why))
        return not gone

    def list(self, path: str) -> tuple[Folder, list[str]] | None:
        """List one folder, and the paths of its subfolders; None: it is gone.

        A file that is remembered keeps what was seen of it.
        """
        self.changed = True
        where = self.top + path
        known = self.snapshot.folders.get(path)
        seen = dict(zip(known.names, known.files)) if known else {}
        names, subfolders = [], []
        programs = self.programs[path] = []
        try:
            # Its times are read before its names: what comes later changes the times again.
            st = os.lstat(where)
            if not modes.S_ISDIR(st.st_mode):
                return None
            with os.scandir(where) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below = _inside(path, entry.name)
                        if not is_pruned(self.top, below):
                            subfolders.append(below)
                        elif is_state(below) and below not in (STATE, STATE_IN_VAR):
                            self.states.add(below)
                        continue
                    name = entry.name.lower()
                    if name.endswith(self.endings) and entry.is_file(follow_symlinks=False):
                        if name.endswith(self.suffixes):
                            names.append(entry.name)
                        if name.endswith(PROGRAM):
                            programs.append(_inside(path, entry.name))
        except OSError as error:
            left = "what lies below it was not looked at"
            return (UNLISTED, []) if self.missed(path or ".", error, "listed", left) else None
        names.sort()
        files = [seen.get(name, UNSEEN) for name in names]
        return Folder(of_stat(st)[1:], names, files), sorted(subfolders)

    # Files.

    def files(self, path: str, folder: Folder) -> Folder:
        """Look at the files of one folder; return the folder as it is now."""
        top = f"{self.top}{path}/" if path else self.top
        names = []
        rows: list[tuple[int, ...]] = []
        for name, row in zip(folder.names, folder.files):
            try:
                new = self.file(path, name, top + name, row)
            except OSError as error:
                inside, left = _inside(path, name), "it stays as it is"
                new = UNSEEN if self.missed(inside, error, "read", left) else None
            if new is not None:
                names.append(name)
                rows.append(new)
        if self.progress:
            self.progress(len(names))
        return folder if rows == folder.files else Folder(folder.stat, names, rows)

    def file(
        self, path: str, name: str, where: str, row: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """Look at one file; return what it is now, None if it is no longer a file."""
        descriptor = open_to_read(where)
        try:
            st = os.fstat(descriptor)
            if has_times(st, row) and _is_placed(descriptor, row):
                if st.st_nlink == row[5]:  # Seen.links
                    return row
                self.changed = True
                return Seen._make(row)._replace(links=st.st_nlink)
            self.changed = True
            if not modes.S_ISREG(st.st_mode):
                return None
            return self.look(_inside(path, name), descriptor, st)
        finally:
            os.close(descriptor)

    def look(self, path: str, descriptor: int, st: os.stat_result) -> Seen:
        from cygwin.image import read_image

        image, fields = None, (0,) * 7
        try:
            image = read_image(descriptor, st.st_size)
            fault, detail = image.fault, image.detail
            # From the machine on, in the order of Seen.
            what = image.machine, image.base_width, flags_of(image), image.dll_characteristics
            fields = *what, image.base, image.size, image.base_offset
        except NotAnImage as error:
            fault, detail = error.fault, error.detail
        number = self.details.setdefault(detail, len(self.details))
        seen = Seen(*of_stat(st), st.st_nlink, *fields, fault.number if fault else 0, number)
        if image:
            self.keep(path, image, descriptor)
            if self.at_first_work and self.at_first_work(path, seen):
                self.at_first_work = None
        return seen

    def keep(self, path: str, image: Image, descriptor: int) -> None:
        taken = 1000 + sum(200 + (b.marks or 0).bit_length() // 8 for b in image.blocks)
        if taken <= self.room:
            self.images[path] = image
            self.room -= taken
        kept = self.open_files
        if kept is not None and not image.fault and len(kept) < most_open(MOST_OPEN):
            with suppress(OSError):
                if path in kept:  # its folder was listed twice
                    os.close(kept.pop(path))
                kept[path] = os.dup(descriptor)


# DllCharacteristics ends so many bytes behind ImageBase, in either format ("Optional Header"), so
# that one read gives both.
_FLAGS_BEHIND = 40


def has_times(st: os.stat_result, row: tuple[int, ...]) -> bool:
    """Return whether a file has the size, the times and the place that were seen."""
    return of_stat(st) == row[:5]


def _is_placed(descriptor: int, row: tuple[int, ...]) -> bool:
    """Return whether an image has the ImageBase and the DllCharacteristics that were seen."""
    width, _, characteristics, base, _, offset = row[7:13]  # in the order of Seen
    if not width:
        return True  # no image
    fields = os.pread(descriptor, width + _FLAGS_BEHIND, offset)
    found = int.from_bytes(fields[:width], "little"), int.from_bytes(fields[-2:], "little")
    return found == (base, characteristics)


def look_at_one(folder: str, name: str) -> tuple[Snapshot, list[tuple[str, str]]]:
    """Look at one file whatever its suffix; return a snapshot of it alone, and what failed."""
    scanner = _Scanner(folder, Rules(), snapshots.blank())
    found = scanner.files("", Folder((0, 0, 0, 0), [name], [UNSEEN]))
    return scanner.snapshot_of({"": found}), scanner.failed


def flags_of(image: Image) -> int:
    """Return the flags of `Seen` for an image."""
    loads = image.fault not in (Fault.TRUNCATED, Fault.NET_ONLY)
    forks = loads and image.is_dll and image.machine in ARENA
    return (snapshots.SIGNED if image.signed else 0) | (snapshots.FORKS if forks else 0)
