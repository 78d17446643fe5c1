"""Which files a live process has mapped: such a DLL must not be replaced.

Cygwin's fork in that process would find another DLL under the name of the one that it has loaded
(winsup/cygwin/dll_init.cc: "Loaded different DLL with same basename in forked child").
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Mapping

from rebaser.files import on_cygwin


def users_of(
    paths: Iterable[str], rebasers: Callable[[], Collection[int]] = tuple
) -> Mapping[str, str]:
    """Return {path: who has it mapped} for those of `paths` that are in use.

    `rebasers` returns the other processes of rebaser, and is asked only where a file is in use: the
    DLLs that their Python has loaded (and this one's) do not count, for nothing is forked there any
    more. On Linux the maps of the processes decide; on Cygwin, whose maps know Cygwin's processes
    only, opening decides and they name.
    """
    maps = _Maps()
    if on_cygwin():
        used = {path: maps.users(path) for path in paths if _is_busy(path)}
    else:
        used = {path: users for path in paths if (users := maps.users(path))}
    own = {os.getpid(), *rebasers()} if used else set()
    # A file that is busy without a known user is in use all the same.
    return {path: _named(users - own) for path, users in used.items() if not users or users - own}


def _is_busy(path: str) -> bool:
    """Return whether Windows says that somebody has loaded the file."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


class _Maps:
    """What all processes have mapped, read once, at the first question."""

    def __init__(self) -> None:
        self._by_inode: dict[int, set[tuple[str, int]]] | None = None

    def users(self, path: str) -> set[int]:
        """Return the processes that have the file mapped."""
        if self._by_inode is None:
            self._by_inode = _read_maps()
        try:
            st = os.stat(path, follow_symlinks=False)
        except OSError:
            return set()
        base = os.path.basename(path)
        # An inode alone is not enough, it repeats from one file system to the next; and the device
        # that maps shows is not st_dev on btrfs and overlayfs.
        return {
            pid
            for name, pid in self._by_inode.get(st.st_ino, ())
            if os.path.basename(name) == base or _is_same_file(name, st)
        }


def _is_same_file(path: str, st: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), st)
    except (OSError, ValueError):
        return False


def _read_maps() -> dict[int, set[tuple[str, int]]]:
    """Return {inode: {(name, process)}} of /proc/PID/maps (proc_pid_maps(5))."""
    found: dict[int, set[tuple[str, int]]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            continue  # it ended, or is another user's
        previous = b""
        for line in lines:
            # 7f…-7f… r-xp 00000000 fe:00 123456     /path with spaces (deleted)
            fields = line.split(None, 5)
            if len(fields) < 6 or fields[4] == b"0" or fields[5] == previous:
                continue
            previous = fields[5]
            name = os.fsdecode(previous).replace("\\012", "\n")
            found.setdefault(int(fields[4]), set()).add((name, int(pid)))
    return found


def _named(users: set[int]) -> str:
    names = []
    for pid in sorted(users)[:3]:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = os.fsdecode(file.read().replace(b"\0", b" ").strip())
        except OSError:
            command = ""
        names.append(f"process {pid}" + (f" ({command[:60]})" if command else ""))
    if len(users) > 3:
        names.append(f"{len(users) - 3} more")
    return ", ".join(names) or "a process that cannot be named from here"
