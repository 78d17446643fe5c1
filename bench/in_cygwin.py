"""Run by Cygwin's own Python: takes the times of programs there, and prints them as JSON.

in_cygwin.py ROUNDS FULL_ROUNDS SMALL LARGE FULL: three trees, and how often each is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
START = "from rebaser.cli import main; main()"
# Says on its last line how many files were opened, of all that Python itself opens too.
COUNTED = """
import sys
from rebaser.cli import dispatch
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(given[0]))
dispatch(sys.argv[1:])
print(len(opened))
"""


def rebaser(*words: str) -> list[str]:
    return ["python3", "-c", START, *words]


def ended(words: list[str]) -> str:
    """Run a program to its end; return what it printed."""
    # Not a pipe: those hang under Wine.
    with tempfile.TemporaryFile() as out:
        subprocess.run(words, cwd=HERE, stdin=subprocess.DEVNULL, stdout=out, check=True)
        out.seek(0)
        return out.read().decode(errors="replace")


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    ended(words)
    return time.perf_counter() - began


def main() -> None:
    rounds, full_rounds = map(int, sys.argv[1:3])
    small, large, full = sys.argv[3:]
    for tree in (small, large):
        for _ in range(3):
            ended(rebaser("run", "-q", tree))
    lock = os.path.join(os.path.dirname(small), "some.lock")
    programs = {
        "python": ["python3", "-c", "pass"],
        "small": rebaser("run", "-q", small),
        "large": rebaser("run", "-q", large),
        "find": ["find", large],
        "lock": rebaser("lock", "--file", lock, "--", "true"),
        "flock": ["flock", lock, "true"],
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, words in programs.items():
            taken[name].append(seconds(words))

    again = f"{full}-again"
    names = [os.path.join(again, name) for name in os.listdir(full) if name.endswith(".dll")]
    listed = f"{full}.names"
    Path(listed).write_text("".join(f"{name}\n" for name in names))
    rewriting = {
        "builtin": rebaser("run", "-q", "--engine", "builtin", again),
        "cygwin": rebaser("run", "-q", "--engine", "cygwin", again),
        "rebase": ["rebase", "-b", "0x3f0000000", "-T", listed],
        "copy": ["cp", "-r", full, f"{full}-copy"],
    }
    taken.update((name, []) for name in (*rewriting, "opens", "settled"))
    for _ in range(full_rounds):
        for name, words in rewriting.items():
            shutil.copytree(full, again)
            time.sleep(6)  # the host's file system is slow with inodes that were just freed
            taken[name].append(seconds(words))
            if name == "builtin":
                ended(rebaser("run", "-q", again))
                taken["settled"].append(seconds(rebaser("run", "-q", again)))
            shutil.rmtree(again)
        shutil.rmtree(f"{full}-copy")
    shutil.copytree(full, again)
    counted = ["python3", "-c", COUNTED, "run", "-q", "--engine", "builtin", again]
    taken["opens"].append(int(ended(counted).split()[-1]) / len(names))
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
