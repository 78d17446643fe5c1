"""What was seen of each file and folder of a tree, so that what is unchanged is not read again."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from cygwin.address_space import ARENA
from cygwin.fault import FAULTS
from cygwin.named_tuple import NamedTuple
from rebaser.errors import RebaserError

MAGIC = b"rebaser\0"
VERSION = 2

_HEADER = struct.Struct("<8sIIQ")  # magic, version, CRC-32 of the rest, length of the rest
# Folders, files, and of the other strings: details, inner, pending, overlaps, names in these.
_COUNTS = struct.Struct("<7Q")
_FOLDER = struct.Struct("<QqqQQ")  # number of its files, then its times, inode and device
_FILE = struct.Struct("<QqqQQIHBBHQIIBI")  # the fields of Seen
_OVERLAP = struct.Struct("<HQQQ")  # machine, low, high, number of names
_TEXTS = 3  # rules, settled, host
_LAST = (1 << 64) - 1

# A time that no file has: what carries it is looked at again.
NEVER = -(1 << 63)

SIGNED = 2
FORKS = 4  # a DLL that a process which forks may load, and then at its base

_DYNAMIC_BASE = 0x40  # of DllCharacteristics
_HIGH_ENTROPY_VA = 0x20


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
        return bool(self.dll_characteristics & _DYNAMIC_BASE)

    @property
    def high_entropy_va(self) -> bool:
        """Whether Windows may spread its address space over all of the 47 bits."""
        return bool(self.dll_characteristics & _HIGH_ENTROPY_VA)

    @property
    def times(self) -> tuple[int, int, int]:
        """What `is_racy` asks about a file."""
        return self.mtime_ns, self.ctime_ns, self.device

    def without_dynamic_base(self) -> Seen:
        """Return what is seen of the file once that flag is cleared."""
        return self._replace(dll_characteristics=self.dll_characteristics & ~_DYNAMIC_BASE)


class Folder(NamedTuple):
    """One folder: (mtime_ns, ctime_ns, inode, device), and its files of interest.

    `names` and `files` run in step; an element of `files` has the fields of Seen, in their order
    (a plain tuple where it was loaded: making thousands of named ones takes longer than the scan).
    """

    stat: tuple[int, ...]
    names: list[str]
    files: list[tuple[int, ...]]


class Overlap(NamedTuple):
    """Images that hang together by overlaps which no run cures; they occupy `[low, high)`."""

    machine: int
    low: int
    high: int
    names: tuple[str, ...]


class Snapshot(NamedTuple):
    """A tree as it was seen: folders by path relative to the root ("" is the root), parents first.

    `rules` names the rules of the scan; folders seen under other rules are not comparable.
    `settled` names the options under which nothing was left to do, or is empty; `overlaps` and
    `pending` (names of images that were in use) were left all the same. `details` are what the
    files' faults refer to; the first is empty. `host` is the machine that saw it. `inner` are the
    folders in which other trees below the root may have their state.
    """

    rules: str
    settled: str
    folders: dict[str, Folder]
    details: list[str]
    host: str = ""
    inner: tuple[str, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    pending: tuple[str, ...] = ()

    def files(self) -> Iterator[tuple[str, Seen]]:
        """Yield the path of every file, relative to the root, and what was seen of it."""
        for path, folder in self.folders.items():
            top = f"{path}/" if path else ""
            for name, row in zip(folder.names, folder.files):
                yield top + name, Seen._make(row)


def blank() -> Snapshot:
    """Return the snapshot of somebody who has seen nothing."""
    return Snapshot("", "", {}, [""])


def this_host() -> str:
    """Return the name of the machine that we run on."""
    return os.uname().nodename


class SnapshotLostError(RebaserError):
    """The file is damaged, or was written by another version: the next scan starts cold."""


# How far the clock of another file system (a network folder's) may be off: nanoseconds.
OTHER_CLOCK = 3600 * 10**9


def is_racy(mtime_ns: int, ctime_ns: int, on: int, now_ns: int, device: int) -> bool:
    """Return whether a file or folder may change once more and look the same.

    The rule for racy entries, as git's index has it: one on the file system `on` that changed at or
    after `now_ns`, the own time of the file system `device` before the scan began, may change again
    within the same tick of that clock.
    """
    limit = now_ns if on == device else now_ns - OTHER_CLOCK
    return mtime_ns >= limit or ctime_ns >= limit


def trusted(snapshot: Snapshot, now_ns: int, device: int) -> Snapshot:
    """Return `snapshot` without the times of what is racy: it is looked at again next time."""
    now, folders = (now_ns, device), {}
    for path, (stat, names, files) in snapshot.folders.items():
        if is_racy(stat[0], stat[1], stat[3], *now):
            stat = (NEVER, *stat[1:])
        files = [
            (row[0], NEVER, *row[2:]) if is_racy(row[1], row[2], row[4], *now) else row
            for row in files
        ]
        folders[path] = Folder(stat, names, files)
    return snapshot._replace(folders=folders)


def without_times(snapshot: Snapshot, *, files: bool = True) -> Snapshot:
    """Return `snapshot` with no times of its folders, nor of its files if these are meant."""
    folders = {}
    for path, (stat, names, rows) in snapshot.folders.items():
        if files:
            rows = [(row[0], NEVER, *row[2:]) for row in rows]
        folders[path] = Folder((NEVER, *stat[1:]), names, rows)
    return snapshot._replace(folders=folders)


def dump(snapshot: Snapshot) -> bytes:
    """Return the bytes of the file that `load` reads."""
    folders, overlaps = snapshot.folders.values(), snapshot.overlaps
    files = [row for folder in folders for row in folder.files]
    in_overlaps = [name for overlap in overlaps for name in overlap.names]
    texts = [snapshot.rules, snapshot.settled, snapshot.host, *snapshot.details]
    names = [*snapshot.inner, *snapshot.pending, *in_overlaps, *snapshot.folders]
    for folder in folders:
        names += folder.names
    # A name is bytes to the file system; what it is as text depends on who reads it.
    strings = [text.encode("utf-8", "surrogateescape") for text in texts]
    strings += map(os.fsencode, names)
    counts = (
        *(len(folders), len(files), len(snapshot.details), len(snapshot.inner)),
        *(len(snapshot.pending), len(overlaps), len(in_overlaps)),
    )
    body = b"".join(
        [
            _COUNTS.pack(*counts),
            *(_pack(_FOLDER, len(folder.names), *folder.stat) for folder in folders),
            *(_pack(_FILE, *row) for row in files),
            # A damaged image may end behind the last address.
            *(_OVERLAP.pack(o[0], o.low, min(o.high, _LAST), len(o.names)) for o in overlaps),
            struct.pack(f"<{len(strings)}I", *map(len, strings)),
            *strings,
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
    counts = _COUNTS.unpack_from(body)
    folder_count, file_count, *others, overlap_count, _ = counts
    files_at = _COUNTS.size + folder_count * _FOLDER.size
    overlaps_at = files_at + file_count * _FILE.size
    lengths_at = overlaps_at + overlap_count * _OVERLAP.size
    string_count = _TEXTS + sum(counts) - overlap_count
    strings_at = lengths_at + 4 * string_count
    _demand(strings_at <= len(body))
    folder_rows = list(_FOLDER.iter_unpack(body[_COUNTS.size : files_at]))
    rows = list(_FILE.iter_unpack(body[files_at:overlaps_at]))
    lengths = struct.unpack_from(f"<{string_count}I", body, lengths_at)
    _demand(strings_at + sum(lengths) == len(body))
    blob = bytes(body[strings_at:])
    text_count = _TEXTS + others[0]
    strings = _strings(blob, lengths, text_count)
    rules, settled, host = islice(strings, _TEXTS)
    details, inner, pending = (list(islice(strings, count)) for count in others)
    overlaps = tuple(
        Overlap(machine, low, high, tuple(islice(strings, count)))
        for machine, low, high, count in _OVERLAP.iter_unpack(body[overlaps_at:lengths_at])
    )
    paths = list(islice(strings, folder_count))
    names = list(strings)
    _demand(len(names) == file_count and sum(row[0] for row in folder_rows) == file_count)
    _demand(len(set(paths)) == folder_count and not _lead_out([*paths, *inner, *pending], names))
    _demand([*dict.fromkeys(["", *details])] == details and _are_possible(rows, len(details)))
    folders = {}
    start = 0
    for path, (count, *stat) in zip(paths, folder_rows):
        end = start + count
        folders[path] = Folder(tuple(stat), names[start:end], rows[start:end])
        start = end
    return Snapshot(rules, settled, folders, details, host, tuple(inner), overlaps, tuple(pending))


def _strings(blob: bytes, lengths: Sequence[int], texts: int) -> Iterator[str]:
    """Yield the strings in `blob`, the first `texts` of them as text, the others as names."""
    how = "utf-8", "surrogateescape"
    at = 0
    for number, length in enumerate(lengths):
        if number == texts:
            how = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        yield blob[at : at + length].decode(*how)
        at += length


def _demand(holds: bool) -> None:
    if not holds:
        raise ValueError("what it says cannot be")


def _lead_out(paths: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether one of these is no folder below the root, or no name in a folder."""
    folders, files = "/".join(paths), "".join(names)
    return "\0" in folders + files or "/" in files or "/../" in f"/{folders}/"


def _are_possible(rows: Iterable[tuple[int, ...]], details: int) -> bool:
    """Return whether all rows can be of files that were looked at."""
    faults = {0, *FAULTS}
    return all(
        row[7] in (0, 4, 8)
        and (not row[8] & FORKS or row[6] in ARENA)
        and row[13] in faults
        and row[14] < details
        for row in rows
    )
