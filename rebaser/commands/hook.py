"""Print what makes a package manager call rebaser, and where it goes; --install writes it.

sage    lines for SageMath's build/bin/sage-spkg, with and without the installers' shared lock
pacman  a hook for MSYS2's pacman: each transaction's new DLLs are made fork-safe
cygwin  a script for a tree beside Cygwin's system: it runs rebaser, records the DLLs in Cygwin's
        database, and advertises the tree to Cygwin's setup, in the order in which neither undoes
        the other's work

exit status:
  0    it was printed, or it is installed
  1    it could not be installed; nothing was changed
  2    usage
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from argparse import ArgumentParser, Namespace

from rebaser.errors import RebaserError, UsageError
from rebaser.files import write_file
from rebaser.hooks import (
    MARK,
    Hook,
    cygwin_hook,
    pacman_hook,
    sage_edit,
    sage_spkg,
    sage_text,
)
from rebaser.text import printable
from rebaser.tree import find_tree

KEPT = ".before-rebaser"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser hook`."""
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
        "from, default /; sage: not needed, the lines say $SAGE_LOCAL",
    )
    parser.add_argument("--install", action="store_true", help="write it where it goes")
    parser.add_argument(
        "--root",
        dest="prefix",
        metavar="DIR",
        help="pacman, cygwin: write below DIR instead of below /; sage: the folder of SageMath's "
        "sources (default: $SAGE_ROOT)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"replace a file that is not rebaser's; the old one is kept as FILE{KEPT}",
    )


def main(arguments: Namespace) -> int:
    """Print or install the hook and return the exit status."""
    command = _command()
    if arguments.manager == "sage":
        _sage(arguments, command)
        return 0
    prefix = os.path.abspath(arguments.prefix).rstrip("/") if arguments.prefix else ""
    if arguments.manager == "pacman":
        root = os.path.abspath(arguments.root or "/")
        if not os.path.isdir(root):
            raise UsageError(f"{root}: this root is not a folder; pacman's is /")
        hook = pacman_hook(root, command, prefix)
        then = "pacman calls it after each transaction that installs DLLs below /usr"
    else:
        tree = find_tree(arguments.root)
        hook = cygwin_hook(tree, command, prefix)
        then = f"run it now, and after each installation into {tree.root}"
    if not arguments.install:
        print(hook.text, end="")
        return 0
    _install(hook, then, force=arguments.force)
    return 0


def _command() -> list[str]:
    """Return the words that call this very program, from any folder and any environment."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) != "rebaser" or not os.access(program, os.X_OK):
        program = shutil.which("rebaser") or ""
    return [os.path.abspath(program)] if program else [sys.executable, "-m", "rebaser"]


def _sage(arguments: Namespace, command: list[str]) -> None:
    sage_root = arguments.prefix or os.environ.get("SAGE_ROOT")
    if not arguments.install:
        print(sage_text(sage_root, command), end="")
        return
    if not sage_root:
        raise UsageError(
            "where are SageMath's sources? Give --root DIR, or set the environment variable "
            "SAGE_ROOT"
        )
    path = sage_spkg(os.path.abspath(sage_root))
    old = _read(path)
    if old is None:
        raise RebaserError(
            f"{path}: there is no such file; --root or SAGE_ROOT must name SageMath's sources. "
            "Nothing was changed"
        )
    try:
        new = sage_edit(old, command)
    except RebaserError as error:
        raise RebaserError(f"{path} was left as it was: {error}") from error
    if new == old:
        print(printable(f"{path}: rebaser is there already; nothing was changed"))
        return
    _keep(path)
    _write(path, new, stat.S_IMODE(os.stat(path).st_mode))
    print(printable(f"{path}: its lines for rebase now call rebaser; the old file is kept as"))
    print(printable(f"{path}{KEPT}. 'rebaser hook sage' prints what else there is to know"))


def _install(hook: Hook, then: str, *, force: bool) -> None:
    old = _read(hook.path)
    if old == hook.text:
        print(printable(f"{hook.path}: it is there already; nothing was changed"))
        return
    kept = ""
    if old is not None and MARK not in old:
        if not force:
            raise RebaserError(
                f"{hook.path}: there is a file that rebaser did not write; it was left as it was. "
                "Move it away, or give --force"
            )
        _keep(hook.path)
        kept = f"; the old file is kept as {hook.path}{KEPT}"
    _write(hook.path, hook.text, hook.mode)
    done = "installed" if old is None else "replaced"
    print(printable(f"{hook.path}: {done}{kept}; {then}"))


def _read(path: str) -> str | None:
    """Return what a file holds, None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RebaserError(
            f"{path}: cannot be read ({error.strerror}); nothing was changed"
        ) from error


def _keep(path: str) -> None:
    try:
        shutil.copy2(path, f"{path}{KEPT}")
    except OSError as error:
        raise RebaserError(
            f"{path}{KEPT}: the old file cannot be kept there ({error.strerror}); nothing was "
            "changed"
        ) from error


def _write(path: str, text: str, mode: int) -> None:
    """Put a text in place, old or new after a crash, never mixed."""
    temporary = f"{path}.rebaser-{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, text.encode("utf-8", "surrogateescape"), temporary)
        os.chmod(path, mode)
    except OSError as error:
        raise RebaserError(
            f"{path}: cannot be written ({error.strerror}); nothing was changed. Run this as "
            "somebody who may write there, or paste what is printed without --install"
        ) from error
