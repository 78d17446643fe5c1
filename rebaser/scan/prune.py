"""Which folders of a tree are left out, with all that lies below them."""

from __future__ import annotations

import os

# Below these nothing of the tree's own programs is loaded: SageMath's build folder, a cross
# compiler's target.
PATHS = ("var/tmp", "sys-root/mingw")
# MSYS2's native prefixes at the top of its root: nothing forks there, and all have DYNAMIC_BASE.
AT_TOP = frozenset(("mingw32", "mingw64", "ucrt64", "clang32", "clang64", "clangarm64"))
# What a whole system has at its top that is no folder of files: processes, devices, and on Cygwin
# all drives and the registry (/proc/registry).
SYSTEMS_OWN = frozenset(("proc", "sys", "dev", "cygdrive"))
# The state of a tree.
STATE, STATE_IN_VAR = ".rebaser", "var/lib/rebaser"


def is_state(path: str) -> bool:
    """Return whether a folder, named relative to a tree's root, may be a tree's state."""
    return f"/{path}".endswith((f"/{STATE}", f"/{STATE_IN_VAR}"))


def is_pruned(top: str, path: str) -> bool:
    """Return whether no scan of the tree `top`, which ends in a slash, goes into this folder of it.

    `path` is relative to `top`.
    """
    if path in AT_TOP or path in PATHS or path.endswith("/sys-root/mingw") or is_state(path):
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
