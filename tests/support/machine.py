"""Runs rebaser as if on another machine: with a host name, and a flock in the state, of its own.

machine.py NAME WORD ...
machine.py NAME install LOCK-FILE URL ROOT NUMBER SECONDS
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rebaser.cli import main
from rebaser.state import folder


def become(name: str) -> None:
    """Make this process one of the machine `name`, as far as rebaser can tell."""
    system = list(os.uname())
    system[1] = name
    os.uname = lambda: os.uname_result(system)
    socket.gethostname = lambda: name
    folder.OWN_LOCK = f"{name}.lock"  # flock(2) knows nothing of other machines


def install(lock_file: str, url: str, root: str, number: str, seconds: str) -> None:
    """Install as installer.py does, under both locks."""
    import installer

    from rebaser.state.machines import take_lock
    from rebaser.tree import find_tree

    @contextmanager
    def locked(root: str) -> Iterator[None]:
        with open(lock_file, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            shared = take_lock(
                url, folder.State(find_tree(root).state_dir, root), None, lambda _: None
            )
            yield
            assert shared.still_ours()
            shared.release()

    installer.main(root, int(number), float(seconds), locked)


if __name__ == "__main__":
    become(sys.argv[1])
    if sys.argv[2] == "install":
        install(*sys.argv[3:])
        sys.exit()
    sys.argv[1:] = sys.argv[2:]
    main()
