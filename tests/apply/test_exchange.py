"""A tree's owner exchanges a folder for a link while root's run goes on: nothing goes astray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stop_at import Call, in_child, intercept
from trees import (
    Rebaser,
    add_dll,
    base_in,
    contents,
    damaged,
    left_over,
    listing,
    make_tree,
    moved,
    overlaps,
)

_EXCHANGE = """
import ctypes, os, sys
one, other, first = (word.encode() for word in sys.argv[1:4])
rename = ctypes.CDLL(None, use_errno=True).renameat2
inode = first and os.stat(first).st_ino
print("ready", flush=True)
while first and os.stat(first).st_ino == inode:
    pass
while True:
    for _ in range(1000):
        if rename(-100, one, -100, other, 2):  # AT_FDCWD, RENAME_EXCHANGE
            sys.exit(0)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's own"),
]


@contextmanager
def exchanging(one: Path, other: Path, first: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process exchange two names over and over, as soon as the file `first` has moved."""
    process = subprocess.Popen(
        [sys.executable, "-c", _EXCHANGE, str(one), str(other), str(first or "")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        pytest.skip("this system's C library has no renameat2")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("folder", ["bin", "lib/deep", "var/lib/rebaser/staging", "var/lib", "var"])
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "link", "replace", "unlink"])
def test_a_folder_that_becomes_a_link_at_a_call(tmp_path: Path, folder: str, call: str) -> None:
    """Just before the first copy is made, say, or just before the first rename."""
    root, victim = make_tree(tmp_path / "tree"), tmp_path / "victim"
    add_dll(root / "lib/deep/name.dll")
    os.link(root / "bin/x001.dll", root / "lib/deep/again.dll")
    for below in ("", "lib/rebaser/staging", "rebaser/staging"):
        (victim / below).mkdir(parents=True, exist_ok=True)
        for name in ("made-by-rebaser", "0000001.dll", "x002.dll", "name.dll", "new"):
            (victim / below / name).write_text("precious")
    before, old = listing(victim), contents(root)
    exchanged = []

    def exchange(name: str, real: Call, words: Sequence[Any]) -> None:
        target = words[-1] if name == "replace" else words[0]
        if isinstance(target, int):
            target = os.readlink(f"/proc/self/fd/{target}")
        is_made = name != "open" or words[1] & os.O_EXCL
        if target.endswith(".dll") and is_made and not exchanged:
            exchanged.append(target)
            os.rename(root / folder, tmp_path / "away")
            os.symlink(victim, root / folder)

    log = tmp_path / "log"
    in_child(["run", str(root)], lambda: intercept([call], exchange), log)
    assert listing(victim) == before, log.read_text()
    if os.path.islink(root / folder):
        os.unlink(root / folder)
        os.rename(tmp_path / "away", root / folder)
    else:
        assert call == "unlink", "the call was never made"
    assert damaged(old, root) == []
    assert in_child(["run", str(root)], lambda: None, log) == 0, log.read_text()
    assert overlaps(root) == set()
    assert left_over(root) == []


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(300)])]
)
@pytest.mark.parametrize("exchanged", ["bin", "lib/deep", "var/lib", "var/lib/rebaser/staging"])
def test_a_folder_that_is_exchanged_for_a_link(
    rebaser: Rebaser, in_memory: Path, exchanged: str, seconds: int
) -> None:
    victim = in_memory / "victim"
    for folder in ("", "staging", "runs", "rebaser", "rebaser/staging", "rebaser/runs"):
        (victim / folder).mkdir()
        (victim / folder / "made-by-rebaser").write_text("precious")
        (victim / folder / "0000001.dll").write_text("precious")
    fresh = in_memory / "fresh"
    for folder in ("bin", "lib/deep/er", "var/lib"):
        (fresh / folder).mkdir(parents=True)
        if not folder.startswith("var"):
            for number in range(1000):  # so that there is time between the first and the last
                old = add_dll(fresh / folder / f"x{number:03}.dll")
    before = listing(victim)
    root = in_memory / "tree"
    done = runs = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        subprocess.run(["cp", "-a", str(fresh), str(root)], check=True)
        (root / exchanged).mkdir(parents=True, exist_ok=True)
        (root / "link").symlink_to(victim)
        # In the midst of the renames, or all the time.
        first = None if exchanged.startswith("var") else root / "bin/x000.dll"
        with exchanging(root / exchanged, root / "link", first):
            result = rebaser("run", root)
        assert listing(victim) == before, result.words
        assert result.status in (0, 1), result.words
        for file in root.rglob("*.dll"):
            if file.parent.name != "staging":
                data = file.read_bytes()
                if data != old:
                    assert data == moved(old, base_in(data)), file
                    done += 1
        runs += 1
        shutil.rmtree(root)
    print(f"{exchanged}: {runs} runs put {done} DLLs in place")
    assert runs
    if exchanged in ("bin", "lib/deep"):
        assert done, "not one DLL was ever moved"
