"""Lists of names that an option gives: files of a tree, one a line or ended by NUL."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rebaser.errors import UsageError, suppress


def read_list(option: str, source: str) -> bytes:
    """Return what an option names: the content of a file, or of standard input for `-`."""
    try:
        if source == "-":
            return sys.stdin.buffer.read()
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"{option} {source}: cannot be read ({error.strerror}); nothing was changed"
        ) from error


def named_paths(
    listed: bytes, tree_root: str, scope: str, *, nul: bool
) -> tuple[frozenset[str], set[str]]:
    """Return the paths, relative to the tree's root, that a list names, and the folders of them.

    One path a line, or ended by NUL; relative to the folder that was asked for, or absolute. What
    lies outside the tree is left out; whether the others exist and are images shows later. Raises
    UsageError for a list that is separated otherwise.
    """
    if not nul and b"\0" in listed:
        raise UsageError("the list given to --only-from holds NUL characters: give -0 too")
    if nul and listed and b"\0" not in listed:
        raise UsageError(
            "with -0 each path given to --only-from ends in a NUL character, and there is none: "
            "leave -0 out for a list of lines"
        )
    if not nul and b"\r" in listed:
        listed = listed.replace(b"\r\n", b"\n").rstrip(b"\r")
    names = os.fsdecode(listed).split("\0" if nul else "\n")
    top, here = tree_root.rstrip("/") + "/", os.path.join(tree_root, scope)
    # Asked once for each folder, as a manifest may have a million lines, and relative to the root,
    # which is a real path; the file itself may be a link.
    real, inside = {top: top, "/": "/"}, {}
    for folder in {name[: name.rfind("/") + 1] for name in names if name}:
        path = _real_folder(os.path.join(here, folder), real)
        inside[folder] = path[len(top) :] if path.startswith(top) else None
    if any(folder != where for folder, where in inside.items()):
        parts = ((inside[n[: n.rfind("/") + 1]], n[n.rfind("/") + 1 :]) for n in names if n)
        names = [where + name for where, name in parts if where is not None]
    found = set(names)
    folders = {"", *filter(None, inside.values())}
    for where in list(folders):
        if where and not found.isdisjoint((where, f"{where}.")):
            found.add(where[:-1])  # a folder
            folders.add(where[: where.rfind("/", 0, -1) + 1])
        found.difference_update((where, f"{where}.", f"{where}.."))
    return frozenset(found), folders


def _real_folder(path: str, known: dict[str, str]) -> str:
    """Return the real path of a folder, both absolute and ended by a slash; `known` are others'."""
    names = []
    while path not in known:
        path, _, name = path[:-1].rpartition("/")
        path += "/"
        names.append(name)
    for name in reversed(names):
        real = known[path] + name
        path += f"{name}/"
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real).rstrip("/")
        known[path] = f"{real}/"
    return known[path]


def first_not_there(
    listed: bytes, names: frozenset[str], folders: Iterable[str], tree_root: str
) -> str | None:
    """Return the first name of a list none of whose names are there, None if one is."""
    if not listed.strip():
        return None
    for folder in folders:
        with suppress(OSError):
            if any(folder + each in names for each in os.listdir(f"{tree_root}/{folder}")):
                return None
    return os.fsdecode(listed.replace(b"\0", b"\n").split(b"\n", 1)[0].rstrip(b"\r"))
