"""Where a tree keeps its lock and its state, and which tree a folder belongs to."""

from __future__ import annotations

import os

from rebaser.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Tree:
    """One tree of images: everything below `root` shares one lock and one plan.

    `root`, `lock_file` and `state_dir` are absolute paths. `scope` is the part of the tree that
    was asked for, relative to `root` and ending in a slash, or "" for all of it.
    """

    # No dataclass: `rebaser lock` needs this class and must not pay for that import.
    __slots__ = ("lock_file", "root", "scope", "state_dir")

    def __init__(self, root: str, lock_file: str, state_dir: str, scope: str = "") -> None:
        self.root = root
        self.lock_file = lock_file
        self.state_dir = state_dir
        self.scope = scope

    def path(self, relative: str) -> str:
        """Return the absolute path of a path relative to the root."""
        return f"{self.root}/{relative}" if self.root != "/" else f"/{relative}"

    def relative(self, path: str) -> str | None:
        """Return an absolute path relative to the root, or None where it lies outside."""
        top = self.root.rstrip("/") + "/"
        return path[len(top) :] if path.startswith(top) else None


def find_tree(
    root: str | None,
    *,
    lock_file: str | None = None,
    state_dir: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Tree:
    """Return the tree that `root`, or else the variable SAGE_LOCAL, names.

    A folder inside another tree (one above it holds rebaser's state or lock, or it lies below
    SAGE_LOCAL) is part of that outermost tree. Raises UsageError where no folder is named.
    """
    named = root or environ.get("SAGE_LOCAL")
    if not named:
        raise UsageError("no tree is named: give ROOT, or set the environment variable SAGE_LOCAL")
    where = "" if root else " (from SAGE_LOCAL)"
    if not os.path.isdir(named):
        what = "is not a folder" if os.path.lexists(named) else "does not exist"
        raise UsageError(f"{named}{where}: the root {what}; name the folder that holds the DLLs")
    asked = os.path.realpath(named)
    outer = _outermost(asked, environ.get("SAGE_LOCAL"))
    lock_file = lock_file or environ.get("REBASER_LOCK_FILE") or None
    state_dir = state_dir or environ.get("REBASER_STATE_DIR") or None
    return Tree(
        root=outer,
        lock_file=os.path.abspath(lock_file) if lock_file else _lock_file(outer),
        state_dir=os.path.abspath(state_dir) if state_dir else _state_dir(outer),
        scope="" if asked == outer else asked[len(outer.rstrip("/")) + 1 :] + "/",
    )


def _has_var(root: str) -> bool:
    return os.path.isdir(f"{root}/var")


def _lock_file(root: str) -> str:
    root = root.rstrip("/")
    return f"{root}/var/lock/rebase.lock" if _has_var(root) else f"{root}/.rebaser/rebase.lock"


def _state_dir(root: str) -> str:
    root = root.rstrip("/")
    return f"{root}/var/lib/rebaser" if _has_var(root) else f"{root}/.rebaser"


def _outermost(asked: str, sage_local: str | None) -> str:
    outer = asked
    trusted = {0, os.geteuid(), os.stat(asked).st_uid}
    sage_local = os.path.realpath(sage_local) if sage_local else None
    above = os.path.dirname(asked)
    below = asked
    while above != below:
        if above == sage_local or any(
            _is_there(f"{above.rstrip('/')}/{mark}", trusted)
            for mark in ("var/lib/rebaser", "var/lock/rebase.lock", ".rebaser/rebase.lock")
        ):
            outer = above
        below, above = above, os.path.dirname(above)
    return outer


def _is_there(path: str, trusted: Collection[int]) -> bool:
    """Return whether there is a file that a trusted user made.

    In /tmp anybody can make a folder look like a tree, and have every tree below it rebased there.
    """
    try:
        return os.lstat(path).st_uid in trusted
    except OSError:
        return False
