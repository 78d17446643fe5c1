"""Which DLLs a process has loaded, on Cygwin and MSYS2: there they must not be replaced.

Cygwin's fork in that process would find another DLL under the name of the one that it has loaded
(winsup/cygwin/dll_init.cc: "Loaded different DLL with same basename in forked child"). Elsewhere a
rename disturbs nobody, and nothing is looked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable

from rebaser.errors import suppress
from rebaser.files import on_cygwin
from rebaser.tree import Tree

_WINE = "/proc/registry/HKEY_CURRENT_USER/Software/Wine"


def users_of(
    names: Iterable[str], tree: Tree, rebasers: Callable[[], Collection[int]] = tuple
) -> dict[str, str]:
    """Return {name: who has it loaded} for those of a tree's `names` that are in use.

    Opening decides, whoever has loaded it. `/proc/PID/maps`, which knows Cygwin's processes alone,
    names them, and is read only when a file is busy: reading it disturbs a process that forks
    (winsup/cygwin/fhandler/process.cc). `rebasers` returns the other processes of rebaser: the
    DLLs that their Python has loaded, and this one's, do not count: nothing is forked there any
    more. They count under Wine, which lets nobody rename over a loaded DLL.
    """
    if not on_cygwin():
        return {}
    busy = {name: tree.path(name) for name in names if _is_busy(tree.path(name))}
    if not busy:
        return {}
    mapped = _mapped_files()
    own = set() if os.path.isdir(_WINE) else {os.getpid(), *rebasers()}
    used = {}
    for name, path in busy.items():
        st = os.stat(path, follow_symlinks=False)
        users = set()
        for file, pid in mapped.get(st.st_ino, ()):
            with suppress(OSError):
                if os.path.samestat(os.stat(file, follow_symlinks=False), st):
                    users.add(pid)
        if not users or users - own:  # one without a known user is in use all the same
            used[name] = _named(users - own)
    return used


def _is_busy(path: str) -> bool:
    """Return whether Windows says that somebody has loaded the file."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _mapped_files() -> dict[int, set[tuple[bytes, int]]]:
    """Return {inode: {(path, process)}} of /proc/PID/maps (proc_pid_maps(5))."""
    found: dict[int, set[tuple[bytes, int]]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # One that ended, or is another user's, is passed over.
        with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            for line in file.read().splitlines():
                # 7f…-7f… r-xp 00000000 fe:00 123456     /path with spaces
                fields = line.split(None, 5)
                if len(fields) > 5 and fields[4] != b"0":
                    found.setdefault(int(fields[4]), set()).add((fields[5], int(pid)))
    return found


def _named(users: set[int]) -> str:
    from locks.holders import words_of  # an import that no run outside Cygwin needs

    names = []
    for pid in sorted(users)[:3]:
        command = " ".join(words_of(pid)).strip()[:60]
        names.append(f"process {pid} ({command})" if command else f"process {pid}")
    if len(users) > 3:
        names.append(f"{len(users) - 3} more")
    return ", ".join(names) or "a process that cannot be named from here"
