"""What a tree needs when several machines work on it: a name for its lock, and a warning."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from rebaser.errors import BusyError, UsageError, advice, suppress
from rebaser.files import make_file
from rebaser.state.folder import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from locks.coordinator import CoordinatorLock

HELD = "REBASER_COORDINATOR_LOCK"
"""The environment variable in which `rebaser lock` tells its command what it holds for it."""

MOUNTS = "/proc/mounts"
NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"),
    # Cygwin's names, as in its winsup/cygwin/mount.cc.
    *("smbfs", "samba", "netapp", "ncfsd", "nwfs", "afs"),
)


def name_of_lock(url: str, state: State, lock: str = "rebase") -> str:
    """Return the name that a lock of the tree has on a coordinator, whatever its path here.

    That is the URL's fragment, or a random word in the tree's state folder, which the first to
    ask writes. Raises UsageError, BusyError.
    """
    return f"rebaser/{url.partition('#')[2] or _word(state)}/{lock}"


def _word(state: State) -> str:
    if not state.is_inside:
        raise UsageError(
            f"{state.folder} lies outside the tree, so other machines cannot read there what "
            "the lock is called: name it in the URL, --coordinator URL#NAME"
        )
    path = f"{state.folder}/name"
    state.make_home()
    try:
        with suppress(FileExistsError), open(make_file("name", state.open(), 0o644), "w") as file:
            file.write(f"{os.urandom(16).hex()}\n")
        for _ in range(50):  # another machine may be about to write it
            word = re.fullmatch(rb"([0-9a-f]{32})\n", state.read("name", 100)[0])
            if word:
                return word[1].decode()
            time.sleep(0.02)
    except OSError as error:
        raise BusyError(
            f"{path}, which names the lock, cannot be made or read ({error.strerror}); nothing "
            f"was changed: {advice(error)}"
        ) from error
    raise BusyError(f"{path} does not hold the name of the lock; nothing was changed: remove it")


def network_file_system(path: str) -> str | None:
    """Return the type of the file system of an absolute path where it is a network's."""
    longest, found = 0, ""
    with suppress(OSError, ValueError), open(MOUNTS, errors="surrogateescape") as file:
        for line in file:
            where, kind = line.split(" ")[1:3]
            where = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where)
            # The last of the longest: one mount may hide another.
            if len(where) >= longest and f"{path}/".startswith(f"{where.rstrip('/')}/"):
                longest, found = len(where), kind
    return found if found in NETWORK else None


def take_lock(
    url: str, state: State, wait: float | None, tell: Callable[[str], None], lock: str = "rebase"
) -> CoordinatorLock:
    """Take a lock of the tree that a coordinator keeps; `tell` is told who holds it, before a wait.

    `wait` is in seconds, None for as long as it takes. Raises UsageError, BusyError.
    """
    from locks.coordinator import CoordinatorError, CoordinatorLock

    name = name_of_lock(url, state, lock)
    if os.environ.get(HELD) == name:
        raise BusyError(
            "the coordinator's lock is held by our own caller, rebaser lock --coordinator, which "
            "cannot hand it down; nothing was changed: run rebaser when its command has ended"
        )
    try:
        remote = CoordinatorLock(url, name)
        what = f"the lock {name} of the coordinator {remote.server}"
        if remote.acquire(wait, lambda who: tell(f"waiting for {what}, {who}")):
            return remote
        who = remote.describe_holder()
        remote.release()
    except CoordinatorError as error:
        kind = UsageError if error.is_usage else BusyError
        raise kind(f"{error}; nothing was changed") from error
    raise BusyError(f"{what} is {who}; nothing was changed: run rebaser again when it is free")
