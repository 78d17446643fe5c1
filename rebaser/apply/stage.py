"""Stage: the copies that are moved, beside the tree's own files and on their file system."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import rebaser.files as files
from cygwin.fault import ImageError
from cygwin.image import Image, read_image
from cygwin.relocation import check_and_sum
from rebaser.apply.engines import Staged
from rebaser.errors import suppress
from rebaser.job import Job
from rebaser.plan.survey import Source
from rebaser.report import Applied, Move
from rebaser.scan import STATE
from rebaser.scan.skip import Stay
from rebaser.scan.walk import has_times
from rebaser.state import NOTE
from rebaser.state.folder import STAGING
from rebaser.state.staging import StagingFolder
from rebaser.tree import Tree

# Files that are open at a time, two a DLL, beside those that the scan has left open.
MOST_OPEN = 200


class Replacement:
    """A move, the file that it concerns, and the copy that takes that file's place.

    `name` is the first of the file's names. `original` and `copy` are descriptors while they are
    open; `staged` is the copy's name in the folder `staging`.
    """

    staging: StagingFolder
    staged: str
    copy: int | None = None

    def __init__(
        self, move: Move, source: Source, image: Image | None, original: int | None = None
    ) -> None:
        self.move = move
        self.name = move.path
        self.source = source
        self.image = image
        self.original = original

    def close(self, *, copy: bool = True) -> None:
        """Close the original, as Cygwin wants it of what is replaced, and the copy."""
        if self.original is not None:
            os.close(self.original)
            self.original = None
        if self.copy is not None and copy:
            os.close(self.copy)
            self.copy = None


class ChangedError(Exception):
    """The file is no longer what was read; its arguments are those of `Applied.note_changed`."""


class StagingFolders:
    """A staging folder on every mount of the tree that needs one, made when first needed.

    Not on every file system: a file cannot be renamed from one mount to another, not even where
    both show the same file system (rename(2), EXDEV). `targets` are the folders of the tree.
    """

    def __init__(self, tree: Tree) -> None:
        self.targets = files.Folders(tree.root)
        self._tree = tree
        self._by_mount: dict[tuple[int, str], StagingFolder] = {}
        self._by_folder: dict[str, StagingFolder] = {}
        own = tree.state.staging
        if own is not None and tree.state.is_inside:
            self._by_mount[_mount(own.descriptor)] = own

    def beside(self, folder: str) -> StagingFolder:
        """Return the staging folder from which a file can be renamed into `folder`."""
        if folder not in self._by_folder:
            self.targets.open(folder)
            chain = self.targets.chain
            mount = _mount(chain[-1][1])
            if mount not in self._by_mount:
                # As high as can be: the folder of a package may go while we work.
                while len(chain) > 1 and _mount(chain[-2][1]) == mount:
                    chain = chain[:-1]
                self._by_mount[mount] = self._make(chain)
            self._by_folder[folder] = self._by_mount[mount]
        return self._by_folder[folder]

    def _make(self, chain: Sequence[tuple[str, int]]) -> StagingFolder:
        name = f"{STAGING}-{os.urandom(8).hex()}"
        path = "/".join([*(name for name, _ in chain[1:]), STATE, name])
        # Noted before it is made: a kill in between leaves nothing that nobody knows of.
        self._tree.state.write(f"{STAGING}/{NOTE}{name}", os.fsencode(path))
        parent = files.open_folder(STATE, chain[-1][1], make=0o755)
        try:
            return StagingFolder(self._tree.path(path), parent)
        finally:
            os.close(parent)

    def remove_copies(self) -> None:
        """Remove the copies that did not take their originals' place."""
        for folder in self._by_mount.values():
            folder.remove_copies()


def _mount(folder: int) -> tuple[int, str]:
    """Return what is equal for folders between which a file can be renamed."""
    mount = ""
    # proc_pid_fdinfo(5), which Cygwin has not.
    with suppress(OSError), open(f"/proc/self/fdinfo/{folder}") as lines:
        mount = next((line for line in lines if line.startswith("mnt_id")), "")
    return os.fstat(folder).st_dev, mount


def stage(
    items: Sequence[Replacement], folders: StagingFolders, job: Job, applied: Applied
) -> list[Replacement]:
    """Make the moved copies; return those that are ready.

    Each copy is relocated by the engine, compared with its original byte by byte, given its
    original's metadata, and made durable. What went wrong with the others is noted in `applied`.
    """
    ready = []
    at_once = max(2, files.most_open(MOST_OPEN, spare=50)) // 2
    for start in range(0, len(items), at_once):
        group = items[start : start + at_once]
        # One call for many images where starting a process takes long; else one by one, while a
        # copy is warm in the processor's cache.
        portions = [group] if job.engine().starts_processes else [[item] for item in group]
        try:
            sealed: list[Replacement] = []
            for portion in portions:
                sealed += _stage_together(portion, folders, job, applied)
            # By now most of them are written, and waiting for one waits for many.
            for item in sealed:
                with _noting(applied, item):
                    assert item.copy is not None
                    os.fsync(item.copy)  # open for writing: Cygwin's fsync refuses any other
                    ready.append(item)
        finally:
            for item in group:
                item.close()
    return ready


def _stage_together(
    group: Iterable[Replacement], folders: StagingFolders, job: Job, applied: Applied
) -> list[Replacement]:
    engine = job.engine()
    copied: list[tuple[Replacement, Staged]] = []
    for item in group:
        with _noting(applied, item):
            copied.append((item, _copy(item, folders, without_marks=engine.starts_processes)))
    reasons = engine.relocate([staged for _, staged in copied])
    sealed = []
    for item, staged in copied:
        with _noting(applied, item):
            if staged.path in reasons:
                raise ImageError(reasons[staged.path])
            _check_and_seal(item, staged, touch=job.options.touch)
            sealed.append(item)
        item.close(copy=False)
        job.progress.advance(0, item.source.seen.size)
    return sealed


@contextmanager
def _noting(applied: Applied, item: Replacement) -> Iterator[None]:
    """Note what goes wrong with one image, and go on."""
    try:
        yield
    except ChangedError as error:
        applied.note_changed(item.name, *error.args)
    except ImageError as error:
        applied.failed[item.name] = f"{error}; it stays as it was"
    except OSError as error:
        applied.note_failed(item.name, "its copy could not be made", error)


def _copy(item: Replacement, folders: StagingFolders, *, without_marks: bool) -> Staged:
    folder, _, name = item.name.rpartition("/")
    try:
        parent = folders.targets.open(folder)
        if item.original is None:
            item.original = files.open_to_read(name, parent)
    except (FileNotFoundError, NotADirectoryError):
        raise ChangedError("", Stay.REMOVED) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ChangedError("it became a symbolic link meanwhile") from None
    original = item.original
    _still_as_seen(original, item)
    image = item.image or read_image(original, item.source.seen.size)
    item.staging = folders.beside(folder)
    item.staged = item.staging.new_name()
    item.copy = files.make_file(item.staged, item.staging.descriptor)
    files.copy_bytes(original, item.copy, is_new=True)
    _still_as_seen(original, item)
    return Staged(
        path=f"{item.staging.path}/{item.staged}",
        source=original,
        copy=item.copy,
        # All images of a group are held at once.
        image=image.without_marks() if without_marks else image,
        new_base=item.move.new_base,
        clear_dynamic_base=item.move.clear_dynamic_base,
    )


def _check_and_seal(item: Replacement, staged: Staged, *, touch: bool) -> None:
    """Compare the moved copy with the original, every byte; then give it the original's metadata.

    All by descriptor: the owner of a tree that root rebases cannot slip another file in between.
    """
    original, copy = staged.source, staged.copy
    clear = staged.clear_dynamic_base
    check_and_sum(original, copy, staged.image, staged.new_base, clear_dynamic_base=clear)
    st = _still_as_seen(original, item)
    made = os.fstat(copy)
    if made.st_uid != st.st_uid:
        os.fchown(copy, st.st_uid, -1)
    if made.st_gid != st.st_gid:
        # Its owner need not be in a file's group, and then may not give it: chown(2).
        with suppress(PermissionError):
            os.fchown(copy, -1, st.st_gid)
    _copy_extended_attributes(original, copy)
    # Last: a change of the owner clears bits of it, and an access control list sets it.
    os.fchmod(copy, modes.S_IMODE(st.st_mode))
    if not touch:
        os.utime(copy, ns=(st.st_atime_ns, st.st_mtime_ns))
    files.begin_to_make_durable(copy)


def _copy_extended_attributes(original: int, copy: int) -> None:
    if not hasattr(os, "listxattr"):  # as Cygwin's Python
        return
    try:
        attributes = {name: os.getxattr(original, name) for name in os.listxattr(original)}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EINVAL):
            return
        raise
    for name, value in attributes.items():
        try:
            os.setxattr(copy, name, value)
        except OSError:
            # A label that a security module keeps for itself is set by it on every new file.
            if not name.startswith("security."):
                raise


def _still_as_seen(descriptor: int, item: Replacement) -> os.stat_result:
    st = os.fstat(descriptor)
    if not has_times(st, item.source.seen):
        raise ChangedError
    return st
