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
import re
import shlex
import shutil
import sys
import zlib
from collections.abc import Mapping

import rebaser.hooks as hooks
from cygwin.values import NamedTuple
from rebaser.commands import Arguments
from rebaser.commands.parser import Parser
from rebaser.errors import UsageError
from rebaser.text import printable
from rebaser.tree import find_tree

TEXTS = {"sage": "sage.sh", "pacman": "pacman.hook", "cygwin": "cygwin.dash"}


class Hook(NamedTuple):
    """The absolute path that a text belongs in, what takes it away again, and what it is about."""

    place: str
    undo: str
    words: Mapping[str, str] = {}


def add_arguments(parser: Parser) -> None:
    names = "|".join(TEXTS)
    parser.add("", "manager", "who is to call rebaser", metavar=names, choices=tuple(TEXTS))
    text = "the tree; cygwin: default $SAGE_LOCAL; pacman: the folder that its paths start "
    text += "from, default /; sage: the folder of SageMath's sources, default $SAGE_ROOT"
    parser.add("", "root ROOT", text, nargs="?")


def main(arguments: Arguments) -> int:
    hook = _hook(arguments.manager, arguments.root)
    words = {**hook.words, "PLACE": hook.place, "REBASER": _this_program()}
    text = f"{hooks.__path__[0]}/{TEXTS[arguments.manager]}"
    with open(text, encoding="utf-8", newline="\n") as file:
        print(re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], file.read()), end="")
    place = shlex.quote(hook.place)
    if arguments.manager == "sage":
        how = f"these lines replace those with sage-flock and sage-rebase.sh in {hook.place}"
    else:
        this = shlex.join(["rebaser", "hook", *filter(None, (arguments.manager, arguments.root))])
        folder = shlex.quote(os.path.dirname(hook.place))
        how = f"this belongs in {hook.place}:\n  mkdir -p {folder} && {this} >{place}"
    for line in f"{how}\nTo take it away again:\n  {hook.undo}".split("\n"):
        print(printable(line), file=sys.stderr)
    return 0


def _hook(manager: str, root: str | None) -> Hook:
    if manager == "cygwin":
        tree = find_tree(root)
        return cygwin_hook(tree.root, tree.state_dir)
    if manager == "pacman":  # alpm-hooks(5)
        folder = os.path.abspath(root or "/")
        if not os.path.isdir(folder):
            raise UsageError(f"{folder}: this root is not a folder; pacman's is /")
        place = "/etc/pacman.d/hooks/rebaser.hook"
        return Hook(place, f"rm {place}", {"ROOT": _quoted(folder)})
    sage_root = root or os.environ.get("SAGE_ROOT") or "$SAGE_ROOT"
    place = f"{sage_root}/build/bin/sage-spkg"
    quoted = f'"{sage_root}"' if sage_root.startswith("$") else shlex.quote(sage_root)
    return Hook(place, f"git -C {quoted} checkout build/bin/sage-spkg")


def cygwin_hook(root: str, state_dir: str) -> Hook:
    """Return the script that setup runs last of all (its perpetual scripts `zp_*`)."""
    # /opt/a-b and /opt/a/b are two trees, and need two names.
    sum_ = zlib.crc32(os.fsencode(root))
    name = f"rebaser{re.sub('[^A-Za-z0-9._]+', '-', root.rstrip('/'))}-{sum_:08x}"
    place = f"/etc/postinstall/zp_{name}.dash"
    advert = f"/var/lib/rebase/localpath.d/{name}"
    words = {"ROOT": _quoted(root), "STATE": _quoted(state_dir), "ADVERT": advert}
    return Hook(place, f"rm {place} {advert}", words)


def _quoted(path: str) -> str:
    if "\n" in path or "\r" in path:
        raise UsageError(f"{path!r}: a path with a line break in it cannot stand in a hook")
    return shlex.quote(path)


def _this_program() -> str:
    """Return what calls this very program in a shell, from any folder and any environment."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) != "rebaser" or not os.access(program, os.X_OK):
        program = shutil.which("rebaser") or ""
    return shlex.join([os.path.abspath(program)] if program else [sys.executable, "-m", "rebaser"])
