"""What was seen of each file and folder of a tree, so that what is unchanged is not read again."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

from cygwin.address_space import ARENA
from cygwin.fault import FAULTS
from cygwin.values import NamedTuple
from rebaser.errors import RebaserError
from rebaser.scan import STATE, STATE_IN_VAR

MAGIC = b"rebaser\0"
VERSION = 4

_HEADER = struct.Struct("<8sIIQ")  # magic, version, CRC-32 of the rest, length of the rest
# Of folders, files, details, inner, pending, programs and overlaps; then rows of folders, files and
# overlaps, then all strings.
_COUNTS = struct.Struct("<7Q")
_FOLDER = struct.Struct("<QqqQQ")  # number of its files, then its times, inode and device
_FILE = struct.Struct("<QqqQQIHBBHQIIBI")  # the fields of Seen
_OVERLAP = struct.Struct("<HQQQ")  # machine, low, high, number of names
_LAST = (1 << 64) - 1

# A time that no file has: what carries it is looked at again.
NEVER = -(1 << 63)

# Bits of `Seen.flags`.
SIGNED = 2
FORKS = 4  # a DLL that a process which forks may load, and then at its base

# Bits of DllCharacteristics.
DYNAMIC_BASE = 0x40
HIGH_ENTROPY_VA = 0x20  # Windows may spread its address space over all of the 47 bits


class Seen(NamedTuple):
    """What was seen of one file. Sizes are bytes, times nanoseconds.

    `base_width` is the size of the ImageBase field, 0 where the file is no image; `fault` is the
    number of the Fault for which the image must not be moved, 0 for none; `detail` belongs to it,
    as a number in the snapshot's `details`.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    links: int
    machine: int
    base_width: int
    flags: int
    dll_characteristics: int
    base: int
    image_size: int
    base_offset: int
    fault: int
    detail: int

    @property
    def dynamic_base(self) -> bool:
        """Whether Windows may load it anywhere, whatever its base."""
        return bool(self.dll_characteristics & DYNAMIC_BASE)


def of_stat(st: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return what tells a file from what it was: the first five fields of `Seen`.

    A folder, of which a `Folder` has the last four, has no size to speak of.
    """
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev


class Folder(NamedTuple):
    """One folder: (mtime_ns, ctime_ns, inode, device), and its files of interest.

    `names` and `files` run in step; an element of `files` has the fields of Seen, in their order
    (a plain tuple where it was loaded: making thousands of named ones takes longer than the scan).
    """

    stat: tuple[int, ...]
    names: list[str]
    files: list[tuple[int, ...]]


class Group(NamedTuple):
    """DLLs that hang together by overlaps, in order of address; they occupy `[low, high)`.

    `cure` is "run" where a run can move one of them, else None. `ours`: one of those that can move
    is among what was asked for. A snapshot keeps neither.
    """

    machine: int
    low: int
    high: int
    paths: tuple[str, ...]
    cure: str | None = None
    ours: bool = True


class Snapshot(NamedTuple):
    """A tree as it was seen: folders by path relative to the root ("" is the root), parents first.

    `rules` names the rules of the scan; folders seen under other rules are not comparable.
    `settled` names the options under which nothing was left to do, or is empty; `overlaps` and
    `pending` (names of images that were in use) were left all the same. `details` are what the
    files' faults refer to; the first is empty. `host` is the machine that saw it. `inner` are the
    folders in which other trees below the root may have their state. `programs` are the paths of
    the programs in `folders`: their names alone, for no run reads them.
    """

    rules: str
    settled: str
    folders: dict[str, Folder]
    details: list[str]
    host: str = ""
    inner: tuple[str, ...] = ()
    overlaps: tuple[Group, ...] = ()
    pending: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    def files(self) -> Iterator[tuple[str, Seen]]:
        """Yield the path of every file, relative to the root, and what was seen of it."""
        for path, folder in self.folders.items():
            top = f"{path}/" if path else ""
            for name, row in zip(folder.names, folder.files):
                yield top + name, Seen._make(row)


def blank() -> Snapshot:
    """Return the snapshot of somebody who has seen nothing."""
    return Snapshot("", "", {}, [""])


class SnapshotLostError(RebaserError):
    """The file is damaged, or was written by another version: the next scan starts cold."""


# How far the clock of another file system (a network folder's) may be off: nanoseconds.
OTHER_CLOCK = 3600 * 10**9


def is_racy(stat: Sequence[int], now_ns: int, device: int) -> bool:
    """Return whether a file or folder may change once more and look the same.

    The rule for racy entries, as git's index has it: one that changed at or after `now_ns`, the own
    time of the file system `device` before the scan began, may change again within the same tick of
    that clock. `stat` is that of a `Folder`, or the same four of `Seen`.
    """
    mtime_ns, ctime_ns, _, on = stat
    limit = now_ns if on == device else now_ns - OTHER_CLOCK
    return mtime_ns >= limit or ctime_ns >= limit


def trusted(snapshot: Snapshot, now_ns: int, device: int, *, folders_move: bool = True) -> Snapshot:
    """Return `snapshot` without the times of what is racy: it is looked at again next time.

    Of all that it holds where `now_ns` is NEVER, of all folders where `folders_move` is false.
    """
    now, folders = (now_ns, device), {}
    for path, (stat, names, files) in snapshot.folders.items():
        if not folders_move or is_racy(stat, *now):
            stat = (NEVER, *stat[1:])
        files = [(row[0], NEVER, *row[2:]) if is_racy(row[1:5], *now) else row for row in files]
        folders[path] = Folder(stat, names, files)
    return snapshot._replace(folders=folders)


def dump(snapshot: Snapshot) -> bytes:
    """Return the bytes of the file that `load` reads; no string in it holds a NUL.

    A name is bytes to the file system; what it is as text depends on who reads it.
    """
    rules, settled, folders, details, host, inner, overlaps, pending, programs = snapshot
    files = [row for folder in folders.values() for row in folder.files]
    strings = [rules, settled, host, *details, *inner, *pending, *programs]
    for names in (*(group.paths for group in overlaps), folders):
        strings += names
    for folder in folders.values():
        strings += folder.names
    body = b"".join(
        [
            _COUNTS.pack(*map(len, (folders, files, details, inner, pending, programs, overlaps))),
            *(_pack(_FOLDER, len(folder.names), *folder.stat) for folder in folders.values()),
            *(_pack(_FILE, *row) for row in files),
            # A damaged image may end behind the last address.
            *(_OVERLAP.pack(o[0], o.low, min(o.high, _LAST), len(o.paths)) for o in overlaps),
            os.fsencode("\0".join(strings)),
        ]
    )
    return _HEADER.pack(MAGIC, VERSION, zlib.crc32(body), len(body)) + body


def _pack(form: struct.Struct, first: int, mtime_ns: int, ctime_ns: int, *rest: int) -> bytes:
    """Return a row; a time outside the years 1677 to 2262, in which 64 bits end, becomes NEVER."""
    try:
        return form.pack(first, mtime_ns, ctime_ns, *rest)
    except struct.error:
        return form.pack(first, NEVER, NEVER, *rest)


def load(data: bytes) -> Snapshot:
    """Return what `dump` wrote. Raises SnapshotLostError for anything else."""
    if len(data) < _HEADER.size:
        raise SnapshotLostError("it is cut short")
    magic, version, checksum, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise SnapshotLostError("it is not rebaser's")
    if version != VERSION:
        raise SnapshotLostError(f"it has version {version}, and this rebaser knows {VERSION}")
    body = memoryview(data)[_HEADER.size :]
    if len(body) != length or zlib.crc32(body) != checksum:
        raise SnapshotLostError("it is damaged")
    try:
        return _parse(body)
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise SnapshotLostError(f"it is damaged ({error})") from error


def _parse(body: memoryview) -> Snapshot:
    folder_count, file_count, *others, overlap_count = _COUNTS.unpack_from(body)
    tables, at = [], _COUNTS.size
    for form, count in ((_FOLDER, folder_count), (_FILE, file_count), (_OVERLAP, overlap_count)):
        end = at + count * form.size
        tables.append(list(form.iter_unpack(body[at:end])))
        at = end
    stats, rows, groups = tables
    strings = iter(os.fsdecode(bytes(body[at:])).split("\0"))
    rules, settled, host = islice(strings, 3)
    details, inner, pending, programs = (list(islice(strings, count)) for count in others)
    overlaps = tuple(Group(m, low, high, tuple(islice(strings, n))) for m, low, high, n in groups)
    paths = list(islice(strings, folder_count))
    names, known = list(strings), set(paths)
    holds = (
        at <= len(body)
        and len(names) == file_count == sum(count for count, *_ in stats)
        and len(known) == folder_count
        and [*dict.fromkeys(["", *details])] == details
        and not _lead_out([*paths, *inner, *pending, *programs], names)
        and all(path.rpartition("/")[0] in known for path in programs)
        and {"", STATE, STATE_IN_VAR}.isdisjoint(inner)  # a run would wait for itself
        and _are_possible(rows, len(details))
    )
    if not holds:
        raise ValueError("what it says cannot be")
    folders, start = {}, 0
    for path, (count, *stat) in zip(paths, stats):
        end = start + count
        folders[path] = Folder(tuple(stat), names[start:end], rows[start:end])
        start = end
    lists = tuple(inner), overlaps, tuple(pending), tuple(programs)
    return Snapshot(rules, settled, folders, details, host, *lists)


def _lead_out(paths: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether one of these is no folder below the root, or no name in a folder."""
    folders = "/".join(["", *filter(None, paths), ""])  # the root is ""
    return "/" in "".join(names) or any(part in folders for part in ("//", "/./", "/../"))


def _are_possible(rows: Sequence[tuple[int, ...]], details: int) -> bool:
    """Return whether all rows can be of files that were looked at."""
    named = ("machine", "base_width", "flags", "fault", "detail")
    machine, width, flags, fault, detail = map(Seen._fields.index, named)
    return (
        {row[width] for row in rows} <= {0, 4, 8}
        and {row[machine] for row in rows if row[flags] & FORKS} <= ARENA.keys()
        and {row[fault] for row in rows} <= {0, *FAULTS}
        and max((row[detail] for row in rows), default=0) < details
    )
