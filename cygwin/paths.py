"""Names of files as Cygwin says them and as the host does."""

from __future__ import annotations

import os
import posixpath

from cygwin.address_space import I386, X86_64

_WINE_DRIVE = "/cygdrive/z"  # Wine's drive Z: is the host's whole file system

# Where `rebase -s` keeps what it knows, by machine: Cygwin names.
DATABASES = {X86_64: "/etc/rebase.db.x86_64", I386: "/etc/rebase.db.i386"}


def host_path(cygwin_path: str, cygwin_root: str | None = None) -> str | None:
    """Return the host's name of a file that Cygwin calls `cygwin_path`; None: it has none.

    `cygwin_root` is the folder that is `/` there. Without it this is Cygwin itself: the name stays,
    but `/usr/bin/x` becomes `/bin/x` and `/usr/lib/x` `/lib/x`, so that two names of one file
    compare equal. The file need not exist.
    """
    path = posixpath.normpath(cygwin_path)
    if not path.startswith("/"):
        return None
    path = "/" + path.lstrip("/")
    # Cygwin's default mounts (User's Guide, "The Cygwin Mount Table"): two names for one folder.
    if f"{path}/".startswith(("/usr/bin/", "/usr/lib/")):
        path = path[len("/usr") :]
    if cygwin_root is None:
        return path
    if f"{path}/".startswith(f"{_WINE_DRIVE}/"):
        return path[len(_WINE_DRIVE) :] or "/"
    if path.startswith("/cygdrive/"):
        return None
    return posixpath.join(cygwin_root, path[1:]) if path != "/" else cygwin_root


def database_files(database: str | None, cygwin_root: str | None) -> list[str]:
    """Return the paths of the database files that are there to be read: `database`, if named."""
    if database:
        return [database]
    names = (host_path(name, cygwin_root) for name in DATABASES.values())
    return [name for name in names if name and os.path.lexists(name)]


def root_of(database: str, cygwin_root: str | None) -> str | None:
    """Return the folder that is `/` for the paths in a database; None: it is this system's own."""
    if cygwin_root:
        return os.path.realpath(cygwin_root)
    folder, name = os.path.split(os.path.realpath(database))
    if name.startswith("rebase.db.") and os.path.basename(folder) == "etc":
        return os.path.dirname(folder).rstrip("/") or None
    return None


def posix_path(path: str) -> str:
    r"""Return Cygwin's own name for a path as Windows says it, `C:\x`, `C:/x`; others as they are.

    Cygwin's calls take both, but to Python one of Windows is relative. Its program `cygpath` knows
    the mounts; where it cannot be started the path is returned as it is. For Cygwin alone.
    """
    if "\\" in path or path[1:3] == ":/":
        from cygwin.programs import ProgramError, run

        try:
            outcome = run(["cygpath", "-u", "--", path], timeout=30)
        except ProgramError:
            return path
        if outcome.status == 0 and outcome.stdout:
            return outcome.stdout
    return path
