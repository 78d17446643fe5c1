"""Runs rebaser as if on another machine: with a host name, and a flock in the state, of its own.

machine.py NAME WORD ...
"""

from __future__ import annotations

import os
import socket
import sys

from rebaser.cli import main
from rebaser.state import folder


def become(name: str) -> None:
    """Make this process one of the machine `name`, as far as rebaser can tell."""
    system = list(os.uname())
    system[1] = name
    os.uname = lambda: os.uname_result(system)
    socket.gethostname = lambda: name
    folder.LOCK = f"{name}.lock"  # flock(2) knows nothing of other machines


if __name__ == "__main__":
    become(sys.argv[1])
    sys.argv[1:] = sys.argv[2:]
    sys.exit(main())
