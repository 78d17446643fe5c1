"""The program `sage-rebase`: SageMath's sage-rebase.sh, done by rebaser."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rebaser.cli import dispatch, start
from rebaser.errors import RebaserError
from rebaser.text import complain

USAGE = """\
usage: sage-rebase [--all] [DIR] [-- FLAG ...]

Makes the DLLs below DIR (default: $SAGE_LOCAL) fork-safe, as `rebaser run DIR --no-wait` does. With
--all they are also recorded in Cygwin's own database (rebase -M), so that its next rebaseall leaves
them where they are. Of the flags of Cygwin's rebase, -v, -q, -t and -n have their meaning; where
the images go is rebaser's to say, so the others are passed over with a warning.

It never waits: its callers lock for it (sage-flock -x LOCK sage-rebase DIR).

exit status: 0 nothing is left that a run could have done; 1 an overlap is left that a run can cure,
or something failed; 2 usage; 75 others hold the lock.
"""

FLAGS = {"-v": "--verbose", "-q": "--quiet", "-t": "--touch"}
IMPLIED = ("-n", "--no-dynamicbase")  # rebaser clears DYNAMIC_BASE anyway
LONGEST = 600.0  # seconds that recording may take: nothing is moved then


def main() -> None:
    """Run the program and exit."""
    start(sage_rebase, sys.argv[1:])


def sage_rebase(words: Sequence[str]) -> int:
    """Do what the command line says; return the exit status. Raises RebaserError."""
    at = [*words, "--"].index("--")
    own, flags = words[:at], words[at + 1 :]
    if any(word in ("-h", "--help") for word in own):
        print(USAGE, end="")
        return 0
    folders = [word for word in own if word != "--all"]
    if len(folders) > 1 or any(word.startswith("-") for word in folders):
        complain(f"sage-rebase: cannot make sense of {' '.join(own)}")
        print(USAGE, end="", file=sys.stderr)
        return 2
    options = []
    for flag in flags:
        if flag in (*FLAGS, *FLAGS.values()):
            options.append(FLAGS.get(flag, flag))
        elif flag not in IMPLIED:
            complain(f"sage-rebase: the flag {flag} of Cygwin's rebase is passed over")
    status = dispatch(["run", "--no-wait", *dict.fromkeys(options), *folders])
    if status == 0 and "--all" in own and (failure := _record(folders[0] if folders else None)):
        raise RebaserError(f"sage-rebase --all: {failure}")
    return status


def _record(folder: str | None) -> str:
    """Tell Cygwin's database where the images of the tree are; return what went wrong, or ""."""
    from cygwin.programs import ProgramError, Programs
    from rebaser.scan.walk import Rules, scan
    from rebaser.tree import find_tree

    tree = find_tree(folder)
    programs = Programs.find()
    if programs is None:
        what = "Cygwin's program rebase was not found; nothing was recorded"
        return f"{what}: install Cygwin's package rebase, and run it again"
    found = scan(tree.root, Rules(), tree.state.load_snapshot(complain))
    images = [tree.path(path) for path, one in found.snapshot.files() if one.base_width]
    try:
        outcome = programs.remember(images, cwd=tree.root, timeout=LONGEST)
    except (ProgramError, ValueError) as error:
        return f"{error}; nothing was recorded in Cygwin's database"
    return f"{outcome}; Cygwin's database may not know the new places" if outcome.status else ""
