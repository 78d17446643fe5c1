"""Runs rebaser in a child process in which one chosen call of the os module goes another way."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Everything by which a run changes something, or waits for the disk.
CHANGING = (
    "chmod",
    "chown",
    "fchmod",
    "fchown",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "open",
    "pwrite",
    "rename",
    "replace",
    "rmdir",
    "setxattr",
    "unlink",
    "utime",
    "write",
)

Call = Callable[..., Any]

# The descriptors that a call's names may be relative to, where it is not `dir_fd`.
_FOLDERS = dict.fromkeys(("link", "rename", "replace"), ("src_dir_fd", "dst_dir_fd"))


def intercept(names: Sequence[str], decide: Callable[[str, Call, Sequence[Any]], Any]) -> None:
    """Put `decide(name, the real function, its arguments)` before each call of these functions.

    What is named relative to a folder's descriptor is shown with its whole path.
    """

    def wrap(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*words: Any, **more: Any) -> Any:
            shown = list(words)
            for at, folder in enumerate(_FOLDERS.get(name, ("dir_fd",))):
                if more.get(folder) is not None:
                    shown[at] = os.path.join(
                        os.readlink(f"/proc/self/fd/{more[folder]}"), words[at]
                    )
            decide(name, real, shown)
            return real(*words, **more)

        setattr(module, name, call)

    for name in names:
        if hasattr(os, name):
            wrap(os, name)
    if "flock" in names:
        wrap(fcntl, "flock")


def in_child(words: Sequence[str], prepare: Callable[[], None], log: Path) -> int:
    """Run `rebaser WORDS` in a child after `prepare`; return its status as waitpid tells it.

    What it says goes to `log`. It is a fork of this process, so that hundreds cost seconds.
    """
    import pefile  # noqa: F401  (imported here, once, and not in every child)

    from rebaser.apply import batches  # noqa: F401
    from rebaser.cli import status_of
    from rebaser.commands import run  # noqa: F401
    from rebaser.plan import proposal  # noqa: F401

    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False)
            prepare()
            status = status_of(list(words))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


class Counter:
    """Counts the calls of all threads; `at` is called with the name when the number is reached."""

    def __init__(self, number: int, at: Callable[[str, Call, Sequence[Any]], Any]) -> None:
        self.number = number
        self.at = at
        self.count = 0
        self.lock = threading.Lock()

    def __call__(self, name: str, real: Call, words: Sequence[Any]) -> None:
        if name == "open" and not words[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            return  # it only reads
        with self.lock:
            self.count += 1
            if self.count != self.number:
                return
        self.at(name, real, words)


def die(name: str, real: Call, words: Sequence[Any]) -> None:
    """End this process as kill -9 does; a write has reached the disk with half of its bytes."""
    if name == "write" and len(words[1]) > 1:
        real(words[0], memoryview(words[1])[: len(words[1]) // 2])
    elif name == "pwrite":
        real(words[0], memoryview(words[1])[: len(words[1]) // 2], words[2])
    os.kill(os.getpid(), signal.SIGKILL)
