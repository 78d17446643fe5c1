"""A run by Cygwin's own Python: its DLLs lie where the run put them, and fork goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from trees import HERE

pytestmark = [pytest.mark.cygwin, pytest.mark.slow, pytest.mark.timeout(900)]

DYNLOAD = "/usr/lib/python3.9/lib-dynload"
#: Modules that rebaser itself does not import: those that it does are in use while it runs.
MODULES = (
    *("_csv", "_ctypes", "_decimal", "_elementtree", "_curses"),
    *("_sqlite3", "_ssl", "_zoneinfo", "pyexpat", "readline"),
)
FILES = [f"{module}.cpython-39-x86_64-cygwin.dll" for module in MODULES]

LOOK = """
import json, os, struct, sys
for module in sys.argv[1:]:
    __import__(module)
found = {}
for line in open("/proc/self/maps"):
    words = line.split(None, 5)
    path = words[5].strip() if len(words) == 6 else ""
    if "/lib-dynload/" in path:
        start = int(words[0].split("-")[0], 16)
        found[path] = min(start, found.get(path, start))
right = {}
for path, start in found.items():
    header = open(path, "rb").read(1024)
    (at,) = struct.unpack_from("<I", header, 0x3C)
    right[os.path.basename(path)] = struct.unpack_from("<Q", header, at + 48)[0] == start
forks = 0
for _ in range(20):
    try:
        child = os.fork()
    except OSError:
        continue
    if not child:
        os._exit(7)
    forks += os.waitpid(child, 0)[1] == 7 << 8
print(json.dumps([forks, right]))
"""


def look(root: CygwinRoot) -> tuple[int, set[str]]:
    """Import the modules and fork twenty times; return how often that went well, and what lies
    where its header says."""
    outcome = root.run("python3.9", "-c", LOOK, *MODULES, timeout=300)
    assert outcome.stdout.startswith("["), str(outcome)
    forks, right = json.loads(outcome.stdout)
    assert set(FILES) <= set(right)
    return forks, {name for name in FILES if right[name]}


def rebaser(root: CygwinRoot, *words: str) -> dict[str, object]:
    """Run this checkout by Cygwin's Python; return its report."""
    call = f'cd "/cygdrive/z{HERE}" && exec python3.9 -m rebaser "$@"'
    outcome = root.run("bash", "-c", call, "rebaser", *words, "--json", timeout=600)
    assert outcome.status == 0, str(outcome)
    report: dict[str, object] = json.loads(outcome.stdout)
    return report


@pytest.mark.parametrize("engine", ["cygwin", "builtin"])
def test_dlls_lie_where_a_run_has_put_them(new_root: CygwinRoot, engine: str) -> None:
    for file in FILES:
        new_root.rebase("-b", "0x400000000", f"{DYNLOAD}/{file}")
    forks, right = look(new_root)
    assert (forks, len(right)) == (0, 1)
    Path(new_root.path, "tmp/list").write_text("".join(f"{file}\n" for file in FILES))
    words = ("run", DYNLOAD, "--engine", engine, "--only-from", "/tmp/list")
    report = rebaser(new_root, *words)
    assert {move["path"] for move in report["moved"]} == set(FILES)  # type: ignore[attr-defined]
    assert look(new_root) == (20, set(FILES))
    assert rebaser(new_root, *words)["moved"] == []
