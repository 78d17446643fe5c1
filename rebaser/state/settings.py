"""The options that a tree has of its own: what they may be, and the file that holds them."""

from __future__ import annotations

import os

from rebaser.errors import UsageError
from rebaser.files import LinkError
from rebaser.state.folder import State

SETTINGS = "options"
"""The file in the state folder that holds options of a tree."""
LARGEST_SETTINGS = 1 << 20  # bytes

# What a settings file may hold: what is to be done with the tree, not once but always.
# fmt: off
LASTING = (
    "--arena", "--avoid", "--coordinator", "--cygwin-root", "--database", "--engine", "--exclude",
    "--force-signed", "--keep-aslr", "--no-wait", "--progress", "--strict", "--suffix", "--touch",
    "--wait",
)
# fmt: on


def read_settings(state: State) -> list[tuple[int, str]]:
    """Return the lines of a tree's settings file as words of a command line, with their numbers.

    One option a line, as on the command line (`--avoid /opt` or `--avoid=/opt`); `#` begins a
    comment. No file is no line. Raises UsageError for a file that cannot be read or that others may
    write, and for a line that is no option which can last.
    """
    path = f"{state.folder}/{SETTINGS}"
    try:
        data, st = state.read(SETTINGS, LARGEST_SETTINGS)
    except (FileNotFoundError, NotADirectoryError, LinkError):  # of the folder: no state is there
        return []
    except OSError as error:
        what = f"the options of this tree cannot be read ({error.strerror}); nothing was changed"
        raise UsageError(f"{path}: {what}: make them a readable file of lines") from None
    if st.st_uid not in {0, os.geteuid(), os.stat(state.root).st_uid} or st.st_mode & 0o022:
        raise UsageError(
            f"{path}: others may write these options, so they are not followed; nothing was "
            "changed: see what they say, then make the file yours alone (chown, chmod go-w)"
        )
    found = []
    for number, line in enumerate(map(os.fsdecode, data.splitlines()), 1):
        words = line.strip().split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        name = words[0].partition("=")[0]
        if name not in LASTING:
            raise UsageError(
                f"{path}, line {number}: {words[0]} is none of the options that a tree can have "
                f"({' '.join(LASTING)}); nothing was changed: correct the line or take it out"
            )
        found.append((number, line.strip() if "=" in words[0] else "=".join(words)))
    return found
