"""What was seen of each file and folder of a tree, so that what is unchanged is not read again."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from rebaser.errors import RebaserError

MAGIC = b"rebaser\0"
VERSION = 1

_HEADER = struct.Struct("<8sIIQ")  # magic, version, CRC-32 of the rest, length of the rest
_COUNTS = struct.Struct("<QQ")  # folders, files
_FOLDER = struct.Struct("<QqqQQ")  # number of its files, then the fields of FolderStat
_FILE = struct.Struct("<QqqQQIHBBQQQI")  # the fields of Seen, its fault as an index of texts

# A time that no file has: what carries it is looked at again.
NEVER = -(1 << 63)

DYNAMIC_BASE = 1
SIGNED = 2
FORKS = 4  # a DLL that a process which forks may load, and then at its base
HIGH_ENTROPY = 8


class Seen(NamedTuple):
    """What was seen of one file. Sizes are bytes, times nanoseconds.

    `base_width` is the size of the ImageBase field, 0 where the file is no image; `fault` is the
    number, in the snapshot's `texts`, of the reason why the image must not be moved; 0 is none.
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
    base: int
    image_size: int
    base_offset: int
    fault: int


class Folder(NamedTuple):
    """One folder: (mtime_ns, ctime_ns, inode, device), and its files of interest.

    `names` and `files` run in step; an element of `files` has the fields of Seen, in their order
    (a plain tuple where it was loaded: making thousands of named ones takes longer than the scan).
    """

    stat: tuple[int, ...]
    names: list[str]
    files: list[tuple[int, ...]]


class Snapshot(NamedTuple):
    """A tree as it was seen: folders by path relative to the root ("" is the root), parents first.

    `rules` names the rules of the scan; folders seen under other rules are not comparable.
    `settled` names the options under which nothing was left to do, or is empty. `texts` are the
    reasons that the files' faults refer to.
    """

    rules: str
    settled: str
    folders: dict[str, Folder]
    texts: list[str]

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
    now = now_ns, device
    folders = {}
    for path, (stat, names, files) in snapshot.folders.items():
        if is_racy(stat[0], stat[1], stat[3], *now):
            stat = (NEVER, *stat[1:])
        if any(is_racy(row[1], row[2], row[4], *now) for row in files):
            files = [
                (row[0], NEVER, *row[2:]) if is_racy(row[1], row[2], row[4], *now) else row
                for row in files
            ]
        folders[path] = Folder(stat, names, files)
    return snapshot._replace(folders=folders)


def dump(snapshot: Snapshot) -> bytes:
    """Return the bytes of the file that `load` reads."""
    names = [snapshot.rules, snapshot.settled, *snapshot.folders]
    folder_rows = []
    file_rows = []
    for folder in snapshot.folders.values():
        folder_rows.append(_FOLDER.pack(len(folder.names), *folder.stat))
        names += folder.names
        file_rows += [_FILE.pack(*row) for row in folder.files]
    names += snapshot.texts
    body = b"".join(
        [
            _COUNTS.pack(len(folder_rows), len(file_rows)),
            *folder_rows,
            *file_rows,
            "\0".join(names).encode("utf-8", "surrogateescape"),
        ]
    )
    return _HEADER.pack(MAGIC, VERSION, zlib.crc32(body), len(body)) + body


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
    except (struct.error, ValueError, IndexError) as error:
        raise SnapshotLostError(f"it is damaged ({error})") from error


def _parse(body: memoryview) -> Snapshot:
    folder_count, file_count = _COUNTS.unpack_from(body)
    files_at = _COUNTS.size + folder_count * _FOLDER.size
    names_at = files_at + file_count * _FILE.size
    if names_at > len(body):
        raise ValueError("its counts lie")
    words = str(body[names_at:], "utf-8", "surrogateescape").split("\0")
    rules, settled = words[:2]
    paths = words[2 : 2 + folder_count]
    names = words[2 + folder_count : 2 + folder_count + file_count]
    texts = words[2 + folder_count + file_count :]
    rows = list(_FILE.iter_unpack(body[files_at:names_at]))
    if not texts or len(names) != file_count or any(row[-1] >= len(texts) for row in rows):
        raise ValueError("its counts lie")
    folders = {}
    none: Folder = Folder((), [], [])
    start = 0
    for path, (count, *stat) in zip(paths, _FOLDER.iter_unpack(body[_COUNTS.size : files_at])):
        if count:
            end = start + count
            folders[path] = Folder(tuple(stat), names[start:end], rows[start:end])
            start = end
        else:
            folders[path] = Folder(tuple(stat), none.names, none.files)
    if start != file_count or len(folders) != folder_count:
        raise ValueError("its counts lie")
    return Snapshot(rules, settled, folders, texts)
