"""Stage: the copies that are moved, beside the tree's own files and on their file system."""

from __future__ import annotations

import errno
import os
import re
import stat as modes
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock, Thread

from cygwin.errors import ImageError
from cygwin.image import Image, read_image
from cygwin.relocation import check_and_sum
from rebaser.apply.engines import Engine, Staged
from rebaser.files import begin_to_make_durable, make_durable
from rebaser.plan.placement import Move
from rebaser.reading import open_to_read
from rebaser.scan.snapshot import Seen
from rebaser.state.folder import STAGING, State
from rebaser.tree import Tree

WINDOW = 1 << 20  # bytes that are copied at a time

# More threads than this only wait for each other: the computing is one at a time.
MOST_THREADS = 2

# Images that are given to an engine at a time; two files of each are open.
MOST_TOGETHER = 100

# The mode bits by which the owner of a read-only copy can open it once more.
OPEN_TO_US = 0o600

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Copy:
    """A moved and checked copy, to take its original's place when it is durable."""

    path: str  # of the copy
    move: Move
    mode: int  # of the original
    attributes: Mapping[str, bytes]  # the extended ones of the original


@dataclass(frozen=True)
class Wanted:
    """What is to be staged: the move, its file (absolute), and what was seen of that."""

    move: Move
    target: str
    seen: Seen
    image: Image | None


class ChangedError(Exception):
    """The file is no longer what was read."""


def is_as_seen(st: os.stat_result, seen: Seen) -> bool:
    """Return whether a file is still the one that was seen, unchanged."""
    return (st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_dev) == (
        seen.size,
        seen.mtime_ns,
        seen.ctime_ns,
        seen.inode,
        seen.device,
    )


class StagingFolders:
    """A staging folder on every file system of the tree that needs one, made when first needed.

    One on every mount, to be exact: a file cannot be renamed from one mount to another, not even
    where both show the same file system (rename(2), EXDEV).
    """

    def __init__(self, tree: Tree, state: State) -> None:
        self.tree = tree
        self.state = state
        self.mounts = _mounts_below(tree.root)
        self.by_place: dict[tuple[int, str], str] = {}
        self.given: list[str] = []
        self.lock = Lock()
        self.removed = 0
        inside = state.folder.startswith(tree.root.rstrip("/") + "/")
        if inside:
            place = os.stat(state.staging).st_dev, self._mount(state.staging)
            self.by_place[place] = state.staging

    def new_name(self, target: str, device: int) -> str:
        """Return the path of a copy to be made on the file system `device`, where `target` lies."""
        with self.lock:
            path = f"{self._folder(target, device)}/{len(self.given):07}.dll"
            self.given.append(path)
        return path

    def remove_copies(self) -> None:
        """Remove the copies that did not take their originals' place."""
        for path in self.given[self.removed :]:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self.removed = len(self.given)

    def _folder(self, target: str, device: int) -> str:
        mount = self._mount(target)
        folder = self.by_place.get((device, mount))
        if folder is None:
            top = os.path.dirname(target)
            while (
                top not in (mount, self.tree.root)
                and os.stat(os.path.dirname(top)).st_dev == device
            ):
                top = os.path.dirname(top)
            parent = f"{top.rstrip('/')}/.rebaser"
            folder = f"{parent}/{STAGING}-{os.urandom(8).hex()}"
            # Noted before it is made: a kill in between leaves nothing that nobody knows of.
            self.state.note_staging_elsewhere(folder)
            os.makedirs(parent, exist_ok=True)
            if os.path.islink(parent):
                raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", parent)
            os.mkdir(folder, 0o700)
            self.by_place[device, mount] = folder
        return folder

    def _mount(self, path: str) -> str:
        """Return the mount below the root that a file lies on, or the root."""
        return next((m for m in self.mounts if path.startswith(f"{m}/")), self.tree.root)


def _mounts_below(root: str) -> list[str]:
    """Return the mounts below `root`, the innermost first; none where the system names none."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    top = os.fsencode(root.rstrip("/") + "/")
    found = set()
    for line in lines:
        # 36 35 98:0 /there /mounted\040here rw,noatime ... (proc_pid_mountinfo(5))
        fields = line.split(b" ", 5)
        if len(fields) > 4:
            mount = _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), fields[4])
            if mount.startswith(top):
                found.add(os.fsdecode(mount))
    return sorted(found, key=len, reverse=True)


@dataclass
class Staging:
    """The result of staging: copies that are ready, and {path: reason} of all the others."""

    ready: list[Copy] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def attempt(self, move: Move, step: Callable[[], None]) -> bool:
        """Do one step for one image; return whether it went well, and note why not."""
        try:
            step()
        except ChangedError as error:
            self.changed[move.path] = str(error)
        except ImageError as error:
            self.failed[move.path] = f"{error}; it stays as it was"
        except OSError as error:
            self.failed[move.path] = (
                f"its copy could not be made ({error.strerror or error}); it stays as it was"
                f"{_advice(error)}"
            )
        else:
            return True
        return False


def stage(
    wanted: Sequence[Wanted],
    folders: StagingFolders,
    engine: Engine,
    *,
    touch: bool,
    jobs: int,
    advance: Callable[[int], None],
) -> Staging:
    """Make the moved copies.

    Each copy is relocated by the engine, compared with its original word by word, given its
    original's metadata, and made durable. `advance` is told of bytes that are done.
    """
    staging = Staging()
    # Numbered in order of address: MSYS2's rebase sorts what it is given by name.
    in_order = sorted(wanted, key=lambda item: (item.move.machine, item.move.new_base))
    sealed: list[Copy] = []

    def append_copy(copied: list[tuple[Wanted, Staged]], item: Wanted) -> None:
        one = _copy(item, folders.new_name(item.target, item.seen.device))
        if engine.starts_processes:  # all images of the tree are held at once
            one = replace(one, image=one.image.without_marks())
        copied.append((item, one))

    def append_sealed(item: Wanted, path: str) -> None:
        sealed.append(_seal(item, path, touch))

    def stage_group(group: Sequence[Wanted]) -> None:
        copied: list[tuple[Wanted, Staged]] = []
        try:
            for item in group:
                staging.attempt(item.move, partial(append_copy, copied, item))
            reasons = engine.relocate([one for _, one in copied])
            for item, one in copied:
                if one.staged in reasons:
                    staging.failed[item.move.path] = f"{reasons[one.staged]}; it stays as it was"
                elif staging.attempt(item.move, partial(_check, item, one)):
                    staging.attempt(item.move, partial(append_sealed, item, one.staged))
                advance(item.seen.size)
        finally:
            for _, one in copied:
                os.close(one.source)
                os.close(one.copy)

    if engine.starts_processes:  # one call for many images: starting a process takes long
        for start in range(0, len(in_order), MOST_TOGETHER):
            stage_group(in_order[start : start + MOST_TOGETHER])
    else:
        # One by one, while a copy is warm in the processor's cache.
        _in_threads(stage_group, [[item] for item in in_order], jobs)
    # All at last: by now most of them are written, and waiting for one waits for many.
    staging.ready = [
        copy for copy in sealed if staging.attempt(copy.move, partial(_make_durable, copy))
    ]
    staging.ready.sort(key=lambda copy: copy.move.path)
    return staging


def _in_threads(
    work: Callable[[Sequence[Wanted]], None], groups: Sequence[Sequence[Wanted]], jobs: int
) -> None:
    """Do the work with `jobs` threads, this one among them: where one copies, another computes.

    Where no thread can be started (limits on processes count threads too) it is done without.
    What is not begun when this is interrupted is left.
    """
    rest = deque(groups)
    errors: list[BaseException] = []

    def do_the_rest() -> None:
        try:
            while True:
                try:
                    group = rest.popleft()
                except IndexError:
                    return
                work(group)
        except BaseException as error:
            errors.append(error)
            rest.clear()

    threads = [
        Thread(target=do_the_rest, name=f"stage {number}")
        for number in range(1, min(jobs, MOST_THREADS, len(groups)))
    ]
    try:
        with suppress(RuntimeError):
            for thread in threads:
                thread.start()
        do_the_rest()
    finally:
        rest.clear()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise errors[0]


def _copy(item: Wanted, path: str) -> Staged:
    """Copy the original, byte for byte; both stay open."""
    source = _open_original(item)
    try:
        _still_as_seen(source, item.seen)
        image = item.image or read_image(source, item.seen.size)
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy_bytes(source, copy)
            _still_as_seen(source, item.seen)
        except BaseException:
            os.close(copy)
            raise
    except BaseException:
        os.close(source)
        raise
    return Staged(path, source, copy, image, item.move.new_base, item.move.clear_dynamic_base)


def _open_original(item: Wanted) -> int:
    try:
        return open_to_read(item.target)
    except (FileNotFoundError, NotADirectoryError):
        raise ChangedError("it was removed meanwhile") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ChangedError("it became a symbolic link meanwhile") from None


def _copy_bytes(source: int, copy: int) -> None:
    while window := os.read(source, WINDOW):
        rest = memoryview(window)
        while rest:  # a disk that is nearly full takes a part, and refuses at the next call
            rest = rest[os.write(copy, rest) :]


def _check(item: Wanted, one: Staged) -> None:
    """Compare the moved copy with the original, every byte."""
    _still_as_seen(one.source, item.seen)
    check_and_sum(
        one.source, one.copy, one.image, one.new_base, clear_dynamic_base=one.clear_dynamic_base
    )


def _seal(item: Wanted, path: str, touch: bool) -> Copy:
    """Give the copy its original's owner, times and mode, but leave it writable for now."""
    original = _open_original(item)
    try:
        st = os.fstat(original)
        if not is_as_seen(st, item.seen):
            raise ChangedError("it changed while it was copied")
        attributes = _extended_attributes(original)
    finally:
        os.close(original)
    # By descriptor: the owner of a tree that root rebases cannot slip another file in between.
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        copy = os.fstat(descriptor)
        if copy.st_uid != st.st_uid:
            os.fchown(descriptor, st.st_uid, -1)
        if copy.st_gid != st.st_gid:
            # Its owner need not be in a file's group, and then may not give it: chown(2).
            with suppress(PermissionError):
                os.fchown(descriptor, -1, st.st_gid)
        mode = modes.S_IMODE(st.st_mode)
        os.fchmod(descriptor, mode | OPEN_TO_US)
        if not touch:
            os.utime(descriptor, ns=(st.st_atime_ns, st.st_mtime_ns))
        begin_to_make_durable(descriptor)
    finally:
        os.close(descriptor)
    return Copy(path, item.move, mode, attributes)


def _make_durable(copy: Copy) -> None:
    """Give the copy what may close it to us, and wait until it is on the disk."""
    descriptor = os.open(copy.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _set_extended_attributes(descriptor, copy.attributes)
        # Among them may be an access control list, which sets a mode. Else nothing is written
        # again that is on its way to the disk.
        if copy.attributes or copy.mode | OPEN_TO_US != copy.mode:
            os.fchmod(descriptor, copy.mode)
        make_durable(descriptor)
    finally:
        os.close(descriptor)


def _extended_attributes(descriptor: int) -> Mapping[str, bytes]:
    if not hasattr(os, "listxattr"):
        return {}
    try:
        return {name: os.getxattr(descriptor, name) for name in os.listxattr(descriptor)}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EINVAL):
            return {}
        raise


def _set_extended_attributes(descriptor: int, attributes: Mapping[str, bytes]) -> None:
    for name, value in attributes.items():
        try:
            os.setxattr(descriptor, name, value)
        except OSError:
            # A label that a security module keeps for itself is set by it on every new file.
            if not name.startswith("security."):
                raise


def _still_as_seen(descriptor: int, seen: Seen) -> None:
    if not is_as_seen(os.fstat(descriptor), seen):
        raise ChangedError("it changed since it was read")


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; make room on its file system and run rebaser again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; run rebaser as the owner of the tree, with the tree writable"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "; raise the limit of open files (ulimit -n) and run rebaser again"
    return ""
