"""Commit: a staged copy takes its original's place, under all its names."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from rebaser.apply.in_use import users_of
from rebaser.apply.stage import Replacement
from rebaser.errors import advice, suppress
from rebaser.files import Folders, LinkError, make_names_durable, put_in_place
from rebaser.job import Job
from rebaser.plan.survey import Source
from rebaser.report import Applied, Move
from rebaser.scan import STATE
from rebaser.scan.skip import Stay, is_excluded
from rebaser.scan.walk import has_times
from rebaser.state.lock import TreeLock

GONE = (FileNotFoundError, NotADirectoryError, LinkError)


def with_all_names(
    job: Job, moves: Collection[Move], sources: Mapping[str, Source]
) -> Mapping[str, Source]:
    """Return `sources` with every name in the tree of what is moved, but those left out by a glob.

    The tree is walked once, and only if a file has more links than the scan has found.
    """
    missing: dict[tuple[int, int], str] = {}
    for move in moves:
        seen, names = sources[move.path]
        if seen.links > len(names):
            missing[seen.device, seen.inode] = move.path
    if not missing:
        return sources
    inodes = {inode for _, inode in missing}
    found, excludes = dict(sources), job.options.excludes
    top = job.tree.root.rstrip("/") + "/"
    stack = [top]
    while stack:
        with suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack += [entry.path] if entry.name != STATE else []
                elif entry.inode() in inodes:
                    # The inode comes with the name; the device takes a look at the file.
                    device = os.lstat(entry.path).st_dev
                    path, name = missing.get((device, entry.inode())), entry.path[len(top) :]
                    if path is None or name in found[path].names or is_excluded(name, excludes):
                        continue
                    found[path] = found[path]._replace(names=(*found[path].names, name))
    return found


def commit(
    items: Sequence[Replacement], folders: Folders, job: Job, lock: TreeLock, applied: Applied
) -> None:
    """Rename the copies over their originals, one by one, after a last look at each.

    A file that changed since it was read, or is in use, keeps its old self. `folders` are those
    of the tree. All names are durable when this returns.
    """
    used = users_of((item.name for item in items), job.tree, lock.rebasers)
    touched: set[str] = set()
    for item in items:
        if item.name in used:
            applied.note_in_use(item.name, used[item.name])
        else:
            _commit_one(item, folders, applied, touched, lock)
        job.progress.advance(1)
    for folder in sorted(touched):
        try:
            make_names_durable(folders.open(folder))
        except OSError as error:
            applied.failed.setdefault(
                folder or ".",
                f"its names may not survive a power failure ({error.strerror}); "
                f"every file in it is sound; {advice(error)}",
            )


def _commit_one(
    item: Replacement, folders: Folders, applied: Applied, touched: set[str], lock: TreeLock
) -> None:
    name, seen, staging = item.name, item.source.seen, item.staging.descriptor

    def put(staged: str, name: str) -> None:
        folder, _, base = name.rpartition("/")
        lock.demand()
        put_in_place(staged, base, staging, folders.open(folder))
        touched.add(folder)

    try:
        if not has_times(_look(folders, name), seen):
            applied.note_changed(name)
            return
    except GONE:
        applied.note_changed(name, cause=Stay.REMOVED)
        return
    except OSError as error:
        applied.note_failed(name, "cannot be looked at", error)
        return
    links = {}
    try:
        # Links to the copy, not to what lies in its place once it is there: that may be anything.
        for other in item.source.names[1:]:
            links[other] = link = item.staging.new_name()
            os.link(item.staged, link, src_dir_fd=staging, dst_dir_fd=staging)
        put(item.staged, name)
    except OSError as error:
        applied.note_failed(name, "its moved copy could not be put in place", error)
        return
    applied.moved.append(item.move)
    for other, link in links.items():
        try:
            # Else it is no longer a name of the file that moved.
            st = _look(folders, other)
            if (st.st_ino, st.st_dev, st.st_size) == (seen.inode, seen.device, seen.size):
                put(link, other)
        except GONE:
            pass
        except OSError as error:
            applied.failed[other] = (
                f"this further name of {name} could not be moved with it ({error.strerror}); "
                f"it is a sound file at the old address; {advice(error)}"
            )
    with suppress(OSError):  # somebody may have removed it since
        applied.now[item.move] = _look(folders, name)


def _look(folders: Folders, name: str) -> os.stat_result:
    """Return the stat of a file of the tree, a symbolic link's own where there is one."""
    folder, _, base = name.rpartition("/")
    return os.stat(base, dir_fd=folders.open(folder), follow_symlinks=False)
