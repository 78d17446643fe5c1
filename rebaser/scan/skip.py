"""What of a tree is left out: folders that no scan goes into, and files that are never moved."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cygwin.fault import FAULTS, Fault
from cygwin.values import Enum, NamedTuple
from rebaser.scan import STATE, STATE_IN_VAR
from rebaser.scan.snapshot import NEVER, Seen, Snapshot

# Nothing of the tree's own programs is loaded from these: SageMath's build folder, at the top; the
# target of a cross compiler, anywhere.
BUILDS, CROSS = "var/tmp", "/sys-root/mingw"
# MSYS2's native prefixes at the top of its root: nothing forks there, and all have DYNAMIC_BASE.
NATIVE_PREFIXES = frozenset(("mingw32", "mingw64", "ucrt64", "clang32", "clang64", "clangarm64"))
# What a whole system has at its top that is no folder of files: processes, devices, and on Cygwin
# all drives and the registry (/proc/registry).
SYSTEMS_OWN = frozenset(("proc", "sys", "dev", "cygdrive"))


class Stay(Enum):
    """Why rebaser leaves a sound image where it is.

    `sentence` says it, `advice` what to do ("": nothing), `option` is the option of `rebaser run`
    that decides it ("": none does).
    """

    RUNTIME = (
        "the Cygwin runtime, which every program loads where it is",
        "leave it, and move what overlaps it",
    )
    SIGNED = (
        "has an Authenticode signature, which moving would break (--force-signed moves it)",
        "do so if nobody checks the signature",
        "--force-signed",
    )
    EXCLUDED = "left out by --exclude", "run without that --exclude", "--exclude"
    IN_USE = "in use", "run rebaser again when that has ended"
    CHANGED = "it changed since it was read", "run rebaser again"
    REMOVED = "it was removed meanwhile", ""

    def __init__(self, sentence: str, advice: str, option: str = "") -> None:
        self.sentence = sentence
        self.advice = advice
        self.option = option


class Skipped(NamedTuple):
    """A file that is not moved, and why."""

    path: str
    cause: Fault | Stay
    detail: str = ""

    @property
    def reason(self) -> str:
        """The cause and its detail as one sentence."""
        return f"{self.cause.sentence}: {self.detail}" if self.detail else self.cause.sentence


def is_excluded(name: str, globs: Sequence[str]) -> bool:
    """Return whether one of the globs matches a path relative to the root, or a folder above it."""
    from fnmatch import fnmatchcase

    while name:
        if any(fnmatchcase(name, glob) for glob in globs):
            return True
        name = name.rpartition("/")[0]
    return False


def files_of(now: Snapshot) -> list[tuple[list[str], Seen]]:
    """Return every file that could be looked at, once, with all its names."""
    found: dict[object, tuple[list[str], Seen]] = {}
    for name, seen in now.files():
        if seen.mtime_ns != NEVER:
            found.setdefault(same_file(name, seen), ([], seen))[0].append(name)
    return list(found.values())


def not_images(now: Snapshot) -> list[tuple[str, str]]:
    """Return the files that could be read and are no images, with the reason."""
    return [
        (names[0], FAULTS[seen.fault].reason(now.details[seen.detail]))
        for names, seen in files_of(now)
        if not seen.base_width
    ]


def same_file(path: str, seen: Seen) -> object:
    """Return what is equal for two names of one file.

    Its hard links, and its names in two folders that are one: Cygwin mounts /usr/bin as /bin.
    """
    return (seen.device, seen.inode) if seen.inode else path


def is_state(path: str) -> bool:
    """Return whether a folder, named relative to a tree's root, may be a tree's state."""
    return f"/{path}".endswith((f"/{STATE}", f"/{STATE_IN_VAR}"))


def is_pruned(top: str, path: str) -> bool:
    """Return whether no scan of the tree `top`, which ends in a slash, goes into this folder of it.

    `path` is relative to `top`.
    """
    if path == BUILDS or path in NATIVE_PREFIXES or f"/{path}".endswith(CROSS) or is_state(path):
        return True
    if path not in SYSTEMS_OWN or top == "/":
        return path in SYSTEMS_OWN
    try:
        return os.lstat(top + path).st_dev != os.lstat(top).st_dev
    except OSError:
        return False


def is_left_out(top: str, path: str) -> bool:
    """Return whether this folder of a tree, or one that it lies in, is pruned."""
    parts = path.split("/")
    return any(is_pruned(top, "/".join(parts[:n])) for n in range(1, len(parts) + 1))
