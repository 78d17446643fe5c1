"""Commit: a staged copy takes its original's place, under all its names."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from rebaser.apply.in_use import users_of
from rebaser.apply.stage import Copy, is_as_seen
from rebaser.files import make_names_durable, put_in_place
from rebaser.plan.placement import Move
from rebaser.plan.survey import Source
from rebaser.scan.snapshot import Seen
from rebaser.tree import Tree


class Outcome(Protocol):
    """Where the commit notes what it did: moves, new stats, and {path: reason} of the others.

    `changed` are the paths at which another file lies by now, or none; `folders` those in which
    names were replaced, relative to the root.
    """

    moved: list[Move]
    now: dict[str, os.stat_result]
    skipped: dict[str, str]
    failed: dict[str, str]
    changed: set[str]
    folders: set[str]


def commit(
    copies: Sequence[Copy],
    tree: Tree,
    sources: Mapping[str, Source],
    outcome: Outcome,
    *,
    rebasers: Callable[[], Collection[int]],
    advance: Callable[[int], None],
) -> None:
    """Rename the copies over their originals, one by one, after a last look at each.

    A file that changed since it was read, or is in use, keeps its old self. `advance` is told of
    each file. All names are durable when this returns.
    """
    targets = {copy.move.path: tree.path(copy.move.path) for copy in copies}
    used = users_of(targets.values(), rebasers)
    folders: set[str] = set()
    for copy in copies:
        target = targets[copy.move.path]
        if target in used:
            outcome.skipped[copy.move.path] = in_use_reason(used[target])
        else:
            _commit_one(copy, target, sources[copy.move.path], tree, outcome, folders)
        advance(1)
    outcome.folders.update(folders)
    for folder in folders:
        try:
            make_names_durable(tree.path(folder))
        except OSError as error:
            outcome.failed.setdefault(
                folder or ".",
                f"its names may not survive a power failure ({error.strerror}); "
                "every file in it is sound",
            )


def _commit_one(
    copy: Copy, target: str, source: Source, tree: Tree, outcome: Outcome, folders: set[str]
) -> None:
    path = copy.move.path
    try:
        if not is_as_seen(os.stat(target, follow_symlinks=False), source.seen):
            outcome.skipped[path] = CHANGED
            outcome.changed.add(path)
            return
    except FileNotFoundError:
        outcome.skipped[path] = REMOVED
        outcome.changed.add(path)
        return
    except OSError as error:
        outcome.failed[path] = f"cannot be looked at ({error.strerror}); it stays as it was"
        return
    try:
        put_in_place(copy.path, target)
    except OSError as error:
        advice = (
            "run rebaser again"  # somebody cleared our staging folder away
            if isinstance(error, FileNotFoundError)
            else "run rebaser as the owner of the tree, with the folder writable"
        )
        outcome.failed[path] = (
            f"its moved copy could not be put in place ({error.strerror}); it stays as it was; "
            f"{advice}"
        )
        return
    outcome.moved.append(copy.move)
    for name in source.names:
        folders.add(name.rpartition("/")[0])
    for name in source.names[1:]:
        reason = _link(target, tree.path(name), copy.path, source.seen)
        if reason:
            outcome.failed[name] = reason
    try:
        outcome.now[path] = os.stat(target, follow_symlinks=False)
    except OSError:
        pass  # somebody has removed it since


CHANGED = "it changed since it was read; run rebaser again"
REMOVED = "it was removed meanwhile"


def in_use_reason(user: str) -> str:
    """Return why a file that somebody has mapped was skipped."""
    return f"in use by {user}; run rebaser again when that has ended"


def _link(target: str, name: str, temporary: str, seen: Seen) -> str | None:
    """Make `name`, another name of the old file, one of the new file; return what went wrong."""
    try:
        if not is_same_file(os.stat(name, follow_symlinks=False), seen):
            return None  # it is no longer a name of the file that moved
        os.link(target, temporary)
        put_in_place(temporary, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return (
            f"this further name of {target} could not be moved with it ({error.strerror}); "
            "it is a sound file at the old base; run rebaser again"
        )
    return None


def is_same_file(st: os.stat_result, seen: Seen) -> bool:
    """Return whether this is the file that was seen, whatever its times are by now."""
    return (st.st_ino, st.st_dev, st.st_size) == (seen.inode, seen.device, seen.size)
