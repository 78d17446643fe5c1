"""What a tree needs when several machines work on it: a name for its lock, and a warning."""

from __future__ import annotations

import os
import re
import time
from urllib.parse import urlsplit

from rebaser.errors import BusyError, UsageError
from rebaser.tree import Tree

MOUNTS = "/proc/mounts"
# The second line is Cygwin's names, as in its winsup/cygwin/mount.cc.
# fmt: off
NETWORK = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs",
    "smbfs", "samba", "netapp", "ncfsd", "nwfs", "afs",
))
# fmt: on


def name_of_lock(url: str, tree: Tree, lock: str = "rebase") -> str:
    """Return the name that a lock of the tree has on a coordinator, whatever its path here.

    That is the URL's fragment, or a random word in the tree's state folder, which the first to
    ask writes. Raises UsageError, BusyError.
    """
    name = urlsplit(url).fragment
    if not name:
        if tree.relative(tree.state_dir) is None:
            raise UsageError(
                f"{tree.state_dir} lies outside the tree, so other machines cannot read there what "
                "the lock is called: name it in the URL, --coordinator URL#NAME"
            )
        name = _word(f"{tree.state_dir}/name")
    return f"rebaser/{name}/{lock}"


def _word(path: str) -> str:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(os.open(path, flags, 0o644), "w") as new:
                new.write(f"{os.urandom(16).hex()}\n")
        except FileExistsError:
            pass
        for _ in range(50):  # another machine may be about to write it
            with open(path) as file:
                word = re.fullmatch(r"([0-9a-f]{32})\n", file.read())
            if word:
                return word[1]
            time.sleep(0.02)
    except OSError as error:
        raise BusyError(
            f"{path}, which names the lock, cannot be made or read ({error.strerror})"
        ) from error
    raise BusyError(f"{path} does not hold the name of the lock: remove it")


def network_file_system(path: str) -> str | None:
    """Return the type of the file system of an absolute path where it is a network's."""
    best = "", ""
    try:
        with open(MOUNTS, errors="surrogateescape") as file:
            for line in file:
                where, kind = line.split(" ")[1:3]
                where = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), where)
                if f"{path}/".startswith(f"{where.rstrip('/')}/") and len(where) >= len(best[0]):
                    best = where, kind
    except (OSError, ValueError):
        pass
    return best[1] if best[1] in NETWORK else None
