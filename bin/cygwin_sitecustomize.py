"""Let Cygwin's Python start processes under Wine: bin/cygwin-root puts this into its site-packages.

In a forked child exec ends the process, silently and with status 0 or 1, once the stack of the
child's main thread has grown past what the parent's had in use at the fork: a fault of Wine 10,
which plain C programs meet too. So fork is called from deep in the stack, and programs are started
from a thread, whose stack is all there.
"""

import _posixsubprocess  # type: ignore[import-not-found]
import os
import threading

DEPTH = 150

_fork = os.fork
_fork_exec = _posixsubprocess.fork_exec


def fork() -> int:
    """os.fork, from 150 frames below its caller."""

    def deep(depth: int) -> int:
        return deep(depth - 1) if depth else _fork()

    return deep(DEPTH)


def fork_exec(*arguments: object) -> int:
    """_posixsubprocess.fork_exec, from a thread of its own."""
    done: list[int] = []
    failed: list[BaseException] = []

    def start() -> None:
        try:
            done.append(_fork_exec(*arguments))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


os.fork = fork
_posixsubprocess.fork_exec = fork_exec
