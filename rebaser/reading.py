"""How a file of the tree is opened to be read."""

from __future__ import annotations

import os

# A symbolic link that has taken the file's place is not followed, and a pipe is not waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Looking at a file is no access: its owner may ask Linux not to note it.
_NO_ATIME = getattr(os, "O_NOATIME", 0)


def open_to_read(path: str) -> int:
    """Return a descriptor that reads `path`, leaving its access time alone where that can be."""
    try:
        return os.open(path, _READ | _NO_ATIME)
    except PermissionError:
        return os.open(path, _READ)
