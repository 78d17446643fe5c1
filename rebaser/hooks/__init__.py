"""The texts that make a package manager call rebaser, and where each of them goes."""

from __future__ import annotations

import os
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rebaser.errors import RebaserError, UsageError
from rebaser.tree import Tree

MARK = "Written by 'rebaser hook"
"""A file that holds this is ours to replace."""


@dataclass(frozen=True)
class Hook:
    """A text and the file that it belongs into, an absolute path, with the mode of that file."""

    path: str
    text: str
    mode: int = 0o644


def pacman_hook(root: str, command: Sequence[str], prefix: str) -> Hook:
    """Return MSYS2's hook (alpm-hooks(5)); `root` is the folder that pacman's paths start from."""
    path = f"{prefix}/etc/pacman.d/hooks/rebaser.hook"
    words = {"PLACE": path, "REBASER": shlex.join(command), "ROOT": _quoted(root)}
    return Hook(path, _filled("pacman.hook", words))


def cygwin_hook(tree: Tree, command: Sequence[str], prefix: str) -> Hook:
    """Return the script that setup runs last of all (its perpetual scripts `zp_*`).

    `prefix` is put before Cygwin's own folders, /etc and /var, also when the script runs.
    """
    name = "rebaser" + tree.root.rstrip("/").replace("/", "-")
    if not re.fullmatch(r"[A-Za-z0-9._/]*", tree.root):
        # /opt/a-b and /opt/a/b are two trees, and need two names.
        sum_ = zlib.crc32(tree.root.encode("utf-8", "surrogateescape"))
        name = f"{re.sub('[^A-Za-z0-9._-]+', '-', name)}-{sum_:08x}"
    path = f"{prefix}/etc/postinstall/zp_{name}.dash"
    words = {
        "PLACE": path,
        "REBASER": shlex.join(command),
        "ROOT": _quoted(tree.root),
        "STATE": _quoted(tree.state_dir),
        "DESTDIR": _quoted(prefix) if prefix else "",
        "NAME": name,
    }
    return Hook(path, _filled("cygwin.dash", words), 0o755)


def sage_text(sage_root: str | None, command: Sequence[str]) -> str:
    """Return the lines for SageMath's sage-spkg."""
    place = sage_spkg(sage_root or "$SAGE_ROOT")
    return _filled("sage.sh", {"PLACE": place, "REBASER": shlex.join(command)})


def sage_spkg(sage_root: str) -> str:
    """Return where SageMath keeps the script that installs a package."""
    return f"{sage_root}/build/bin/sage-spkg"


_LOCK = re.compile(r"sage-flock\s+-s\s+200\b")
_UNLOCK = re.compile(r"sage-flock\s+-u\s+200\b")
_REBASE = re.compile(
    r"sage-flock\s+-x\s+(?:\\\n\s*)?\S*rebase\.lock\"?\s+(?:\\\n\s*)?sage-rebase\.sh\b"
)


def sage_edit(text: str, command: Sequence[str]) -> str:
    """Return sage-spkg with rebaser in its lines for rebase; the same text, if done before.

    Raises RebaserError where a line that is to be replaced is not there.
    """
    program = shlex.join(command)
    wanted = (
        (_LOCK, f"{program} lock --fd 200 -s", "sage-flock -s 200"),
        (_UNLOCK, f"{program} lock --fd 200 -u", "sage-flock -u 200"),
        (_REBASE, f"{program} run", "sage-flock -x .../rebase.lock sage-rebase.sh ..."),
    )
    for pattern, line, words in wanted:
        if line in text and not pattern.search(text):
            continue
        # A function, so that nothing in the line is taken for a group of the pattern.
        text, count = pattern.subn(lambda _, line=line: line, text)  # type: ignore[misc]
        if not count:
            raise RebaserError(
                f"it has no line '{words}', so this is not the sage-spkg that is known here: paste "
                "what 'rebaser hook sage' prints by hand"
            )
    return text


def _filled(name: str, words: Mapping[str, str]) -> str:
    path = os.path.join(os.path.dirname(__file__), name)
    with open(path, encoding="utf-8", newline="\n") as file:
        text = file.read()
    return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], text)


def _quoted(path: str) -> str:
    if "\n" in path or "\r" in path:
        raise UsageError(f"{path!r}: a path with a line break in it cannot stand in a hook")
    return shlex.quote(path)
