"""Where a tree keeps its lock and its state, and which tree a folder belongs to."""

from __future__ import annotations

import os
import stat as modes

from rebaser.errors import UsageError, suppress
from rebaser.files import on_cygwin
from rebaser.scan import LOCK, RUNS, STATE, STATE_IN_VAR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rebaser.state.folder import State


class Tree:
    """One tree of images: everything below `root` shares one lock and one plan.

    `root`, `lock_file` and `state_dir` are absolute paths. `scope` is the part of the tree that
    was asked for, relative to `root` and ending in a slash, or "" for all of it. `find_again` looks
    once more where what was asked for belongs.
    """

    # No dataclass: `rebaser lock` needs this class and must not pay for that import.
    def __init__(
        self,
        root: str,
        lock_file: str,
        state_dir: str,
        scope: str = "",
        find_again: Callable[[], Tree] | None = None,
    ) -> None:
        self.root = root
        self.lock_file = lock_file
        self.state_dir = state_dir
        self.scope = scope
        self.find_again = find_again or (lambda: self)
        self._state: State | None = None

    @property
    def state(self) -> State:
        """What this tree keeps of itself."""
        if self._state is None:
            from rebaser.state.folder import State

            self._state = State(self.state_dir, self.root)
        return self._state

    def path(self, relative: str) -> str:
        """Return the absolute path of a path relative to the root."""
        return f"{self.root}/{relative}" if self.root != "/" else f"/{relative}"

    def relative(self, path: str) -> str | None:
        """Return an absolute path relative to the root, or None where it lies outside."""
        top = self.root.rstrip("/") + "/"
        return path[len(top) :] if path.startswith(top) else None


def find_tree(
    root: str | None = None, *, lock_file: str | None = None, state_dir: str | None = None
) -> Tree:
    """Return the tree that `root`, or else the variable SAGE_LOCAL, names.

    A folder inside another tree (a run of rebaser has made a folder above it one, or it lies below
    SAGE_LOCAL) is part of that outermost tree, if a scan of that goes there. Raises UsageError
    where no folder is named, and for `/` where this is no Cygwin or MSYS2.
    """
    named = root or os.environ.get("SAGE_LOCAL")
    if not named:
        raise UsageError("no tree is named: give ROOT, or set the environment variable SAGE_LOCAL")
    where = "" if root else " (from SAGE_LOCAL)"
    named = posix_name(named)
    if not os.path.isdir(named):
        what = "is not a folder" if os.path.lexists(named) else "does not exist"
        raise UsageError(f"{named}{where}: the root {what}; name the folder that holds the DLLs")
    asked = os.path.realpath(named)
    if asked == "/" and not on_cygwin():
        raise UsageError(
            f"{named}{where}: this whole system is no tree of DLLs; name the folder that holds them"
        )
    outer = _outermost(asked, os.environ.get("SAGE_LOCAL"))
    lock, state = lock_and_state(outer)
    return Tree(
        root=outer,
        lock_file=os.path.abspath(lock_file or os.environ.get("REBASER_LOCK_FILE") or lock),
        state_dir=os.path.abspath(state_dir or os.environ.get("REBASER_STATE_DIR") or state),
        scope="" if asked == outer else asked[len(outer.rstrip("/")) + 1 :] + "/",
        find_again=lambda: find_tree(asked, lock_file=lock_file, state_dir=state_dir),
    )


def posix_name(path: str) -> str:
    r"""Return a path as Python needs it: on Cygwin users may say `C:\x` too."""
    if not on_cygwin():
        return path
    from cygwin.paths import posix_path

    return posix_path(path)


def lock_and_state(root: str) -> tuple[str, str]:
    """Return where a tree has its lock and its state, if nobody says otherwise."""
    root = root.rstrip("/")
    if os.path.isdir(f"{root}/var"):
        return f"{root}/var/lock/{LOCK}", f"{root}/{STATE_IN_VAR}"
    return f"{root}/{STATE}/{LOCK}", f"{root}/{STATE}"


def _outermost(asked: str, sage_local: str | None) -> str:
    outer = above = asked
    trusted = {0, os.geteuid(), os.stat(asked).st_uid}
    sage_local = os.path.realpath(posix_name(sage_local)) if sage_local else None
    while above != "/":
        above = os.path.dirname(above)
        if above == "/" and not on_cygwin():
            break
        if above == sage_local or any(
            _made_by_a_run(above, s, trusted) for s in (STATE, STATE_IN_VAR)
        ):
            from rebaser.scan.skip import is_left_out

            # What no scan of that tree would see is none of it: /cygdrive/c/sage is not of /.
            top = above.rstrip("/") + "/"
            if not is_left_out(top, asked[len(top) :]):
                outer = above
    return outer


def _made_by_a_run(folder: str, state: str, trusted: Collection[int]) -> bool:
    """Return whether a folder has a state that only trusted users can have made.

    In /tmp anybody can make a folder look like a tree, and have every tree below it rebased there.
    A lock file says nothing: build scripts make those.
    """
    path = folder.rstrip("/")
    with suppress(OSError):
        for name in (*state.split("/"), RUNS):
            path = f"{path}/{name}"
            st = os.lstat(path)
            is_closed = name in ("var", "lib") or not st.st_mode & (modes.S_IWGRP | modes.S_IWOTH)
            if not (modes.S_ISDIR(st.st_mode) and st.st_uid in trusted and is_closed):
                return False
        return True
    return False
