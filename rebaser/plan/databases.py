"""Which files of Cygwin's rebase database there are, and what `/` is in them."""

from __future__ import annotations

import os

from cygwin.paths import DATABASES, host_path


def database_files(database: str | None, cygwin_root: str | None) -> list[str]:
    """Return the paths of the database files that are there to be read."""
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
