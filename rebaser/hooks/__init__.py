"""The texts that make a package manager call rebaser, and where each of them goes."""

from __future__ import annotations

import os
import re
import shlex
import zlib

from cygwin.named_tuple import NamedTuple
from rebaser.errors import UsageError


class Hook(NamedTuple):
    """A text, the absolute path of the file that it belongs in, and what takes it away again."""

    place: str
    text: str
    undo: str


def pacman_hook(root: str, rebaser: str) -> Hook:
    """Return MSYS2's hook (alpm-hooks(5)); `root` is the folder that pacman's paths start from.

    `rebaser` is the command that a shell, or pacman, calls it by.
    """
    place = "/etc/pacman.d/hooks/rebaser.hook"
    text = _filled("pacman.hook", PLACE=place, REBASER=rebaser, ROOT=_quoted(root))
    return Hook(place, text, f"rm {place}")


def cygwin_hook(root: str, state_dir: str, rebaser: str) -> Hook:
    """Return the script that setup runs last of all (its perpetual scripts `zp_*`)."""
    # /opt/a-b and /opt/a/b are two trees, and need two names.
    sum_ = zlib.crc32(os.fsencode(root))
    name = f"rebaser{re.sub('[^A-Za-z0-9._]+', '-', root.rstrip('/'))}-{sum_:08x}"
    place = f"/etc/postinstall/zp_{name}.dash"
    advert = f"/var/lib/rebase/localpath.d/{name}"
    words = {"ROOT": _quoted(root), "STATE": _quoted(state_dir), "ADVERT": advert}
    text = _filled("cygwin.dash", PLACE=place, REBASER=rebaser, **words)
    return Hook(place, text, f"rm {place} {advert}")


def sage_hook(sage_root: str, rebaser: str) -> Hook:
    """Return the lines for the script with which SageMath installs a package."""
    place = f"{sage_root}/build/bin/sage-spkg"
    quoted = f'"{sage_root}"' if sage_root.startswith("$") else shlex.quote(sage_root)
    text = _filled("sage.sh", PLACE=place, REBASER=rebaser)
    return Hook(place, text, f"git -C {quoted} checkout build/bin/sage-spkg")


def _filled(name: str, **words: str) -> str:
    with open(f"{os.path.dirname(__file__)}/{name}", encoding="utf-8", newline="\n") as file:
        return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], file.read())


def _quoted(path: str) -> str:
    if "\n" in path or "\r" in path:
        raise UsageError(f"{path!r}: a path with a line break in it cannot stand in a hook")
    return shlex.quote(path)
