"""Print what makes a package manager call rebaser, for the file that is named on standard error.

sage    lines for SageMath's build/bin/sage-spkg, with and without the installers' shared lock
pacman  a hook for MSYS2's pacman: each transaction's new DLLs are made fork-safe
cygwin  a script for a tree beside Cygwin's system: it runs rebaser, records the DLLs in Cygwin's
        database, and advertises the tree to Cygwin's setup, in the order in which neither undoes
        the other's work

Nothing is written; how to take the hook away again is said on standard error too.

exit status:
  0    it was printed
  2    usage
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from argparse import ArgumentParser, Namespace

from rebaser.errors import UsageError
from rebaser.hooks import Hook, cygwin_hook, pacman_hook, sage_hook
from rebaser.text import printable
from rebaser.tree import find_tree


def add_arguments(parser: ArgumentParser) -> None:
    """Add the operands of `rebaser hook`."""
    parser.add_argument(
        "manager",
        metavar="sage|pacman|cygwin",
        choices=("sage", "pacman", "cygwin"),
        help="who is to call rebaser",
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        nargs="?",
        help="the tree; cygwin: default $SAGE_LOCAL; pacman: the folder that its paths start "
        "from, default /; sage: the folder of SageMath's sources, default $SAGE_ROOT",
    )


def main(arguments: Namespace) -> int:
    """Print the hook, and on standard error where it goes."""
    hook = _hook(arguments.manager, arguments.root)
    print(hook.text, end="")
    place = shlex.quote(hook.place)
    if arguments.manager == "sage":
        how = f"these lines replace those with sage-flock and sage-rebase.sh in {hook.place}"
    else:
        root = [arguments.root] if arguments.root else []
        words = shlex.join(["rebaser", "hook", arguments.manager, *root])
        folder = shlex.quote(os.path.dirname(hook.place))
        how = f"this belongs in {hook.place}:\n  mkdir -p {folder} && {words} >{place}"
    for line in f"{how}\nTo take it away again:\n  {hook.undo}".split("\n"):
        print(printable(line), file=sys.stderr)
    return 0


def _hook(manager: str, root: str | None) -> Hook:
    rebaser = _this_program()
    if manager == "cygwin":
        tree = find_tree(root)
        return cygwin_hook(tree.root, tree.state_dir, rebaser)
    if manager == "pacman":
        folder = os.path.abspath(root or "/")
        if not os.path.isdir(folder):
            raise UsageError(f"{folder}: this root is not a folder; pacman's is /")
        return pacman_hook(folder, rebaser)
    return sage_hook(root or os.environ.get("SAGE_ROOT") or "$SAGE_ROOT", rebaser)


def _this_program() -> str:
    """Return what calls this very program in a shell, from any folder and any environment."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) != "rebaser" or not os.access(program, os.X_OK):
        program = shutil.which("rebaser") or ""
    return shlex.join([os.path.abspath(program)] if program else [sys.executable, "-m", "rebaser"])
