"""Take away what rebaser keeps of a tree: state, records of runs, leftovers. No DLL is touched.

After that the folder is no tree, and the next run begins as if it were the first. Asks first, on a
terminal. The tree's own options stay, and so does a lock file that others may use.

exit status:
  0    nothing of rebaser's is left, but what is named
  1    something could not be taken away, or the answer was no
  2    usage; also where there is nobody to ask and no --yes
  75   the lock is held: a run is at work, or a package is being installed; nothing was changed
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence

from locks.holders import describe_holders, holders
from rebaser.commands import Arguments
from rebaser.commands.parser import Parser
from rebaser.commands.shared import SETTINGS, add_root, tree_of
from rebaser.errors import BusyError, UsageError, suppress
from rebaser.files import Folders, names_in
from rebaser.scan import RUNS
from rebaser.state.folder import OWN_LOCK, SNAPSHOT
from rebaser.state.lock import TreeLock
from rebaser.text import complain, printable
from rebaser.tree import Tree


def add_arguments(parser: Parser) -> None:
    add_root(parser)
    parser.add("", "--yes", "do not ask")


def main(arguments: Arguments) -> int:
    tree = tree_of(arguments, arguments.root)
    root = printable(tree.root)
    if tree.scope:
        raise UsageError(f"{arguments.root} is a part of the tree {root}: name that one")
    if not os.path.lexists(tree.state_dir):
        print(f"{root}: rebaser keeps nothing of it")
        return 0
    if not (arguments.yes or _is_wanted(f"Forget all runs on {root}? No DLL is touched. [y/N] ")):
        print(f"{root}: nothing was changed")
        return 1
    with TreeLock(tree.lock_file, tree.state, wait=0, tell=lambda text: None) as lock:
        lock.exclude()
        # Who waits for it has it open, and must not be left with a lock that has no name.
        if holders(tree.lock_file):
            raise BusyError(
                f"the lock {tree.lock_file} is {describe_holders(tree.lock_file)}; nothing was "
                "changed: forget the tree when that has ended"
            )
        tree.state.clear_staging()
        foreign = list(_remove(tree))
    for path in foreign:
        complain(f"{path} is left: it is not rebaser's, or may not be removed")
    print(f"{root}: {'not all of it was' if foreign else 'all runs are'} forgotten")
    for path, why in (
        (f"{tree.state_dir}/{SETTINGS}", "the options of this tree are yours"),
        (tree.lock_file, "others may use this lock, and a lock file makes no tree"),
    ):
        if os.path.lexists(path):
            print(f"{printable(path)} stays: {why}")
    return int(bool(foreign))


def _is_wanted(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is nobody to ask whether the tree is to be forgotten: give --yes")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _remove(tree: Tree) -> Iterator[str]:
    """Remove what runs leave in a state folder, by its names; yield the paths of all else."""
    above, name = os.path.split(tree.state_dir)
    inside = tree.relative(tree.state_dir)
    folders = Folders(tree.root if inside else above)
    state = inside or name
    with suppress(OSError):  # there are none, or it is no folder: then it is told below
        runs = names_in(folders.open(f"{state}/{RUNS}"))
        records = [name for name in runs if re.fullmatch(r"[0-9]+\.json", name)]
        for each in _clear(folders, f"{state}/{RUNS}", records):
            yield f"{tree.state_dir}/{RUNS}/{each}"
    ours = [SNAPSHOT, OWN_LOCK]
    if os.path.dirname(tree.lock_file) == tree.state_dir:
        ours.append(os.path.basename(tree.lock_file))  # last: from then on others are at work
    for each in _clear(folders, state, ours):
        if each not in (SETTINGS, RUNS):
            yield f"{tree.state_dir}/{each}"


def _clear(folders: Folders, path: str, ours: Sequence[str]) -> list[str]:
    """Remove the files of these names from a folder, and it too if nothing is left; return that."""
    folder = folders.open(path)
    removed = set()
    for name in ours:
        with suppress(OSError):  # it is not there, or is among those that are left
            os.unlink(name, dir_fd=folder)
            removed.add(name)  # Windows may list it until the lock that we have on it is closed
    left = sorted(set(names_in(folder)) - removed)
    if not left:
        above, _, name = path.rpartition("/")
        with suppress(OSError):  # somebody has come
            os.rmdir(name, dir_fd=folders.open(above))
    return left
