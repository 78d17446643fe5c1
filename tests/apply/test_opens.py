"""How often a DLL that moves is opened: on Cygwin an open costs much, and scanners look at each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from trees import FLOOR, Rebaser, add_dll, add_dlls, overlaps

_OPEN = re.compile(r'open(?:at)?\((?:\w+, )?"([^"]*\.dll)", (\S+?)(?:, 0\d+)?\) += \d')


def opened(rebaser: Rebaser, trace: Path, *words: object) -> Counter[str]:
    """Run rebaser; return how often each DLL was opened, a copy by its own name."""
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=open,openat"]
    result = rebaser(*words, before=strace)
    if "ptrace" in result.err:
        pytest.skip("strace may not trace here")
    assert result.status == 0, result.words
    found = (_OPEN.search(line) for line in trace.read_text().splitlines())
    return Counter(match[1].rpartition("/")[2] for match in found if match)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: install strace")
def test_a_dll_that_moves_is_opened_once_and_so_is_its_copy(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    """From the first look to the last; a DLL that is only looked at is opened once."""
    add_dlls(tree, 250, first=20)
    found = opened(rebaser, tmp_path / "trace", "run", tree, "--engine", "builtin")
    assert overlaps(tree) == set()
    names = {path.name for path in tree.rglob("*.dll")}
    copies = found.keys() - names
    assert len(copies) == 256
    assert names <= found.keys()
    assert set(found.values()) == {1}


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: install strace")
def test_where_nothing_is_to_do_each_dll_is_opened_once(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    add_dlls(tree, 20, first=20)
    rebaser.report("run", tree)
    found = opened(rebaser, tmp_path / "trace", "run", tree)
    assert found == dict.fromkeys((path.name for path in tree.rglob("*.dll")), 1)


def test_few_files_may_be_open(rebaser: Rebaser, tree: Path) -> None:
    add_dlls(tree, 100, first=20)
    result = rebaser("run", tree, before=["sh", "-c", 'ulimit -S -n 40 && exec "$@"', "sh"])
    assert result.status == 0, result.words
    assert overlaps(tree) == set()


def test_a_sparse_dll_stays_sparse(rebaser: Rebaser, tree: Path) -> None:
    """Here one with a debugger's table behind its sections, most of which is a hole."""
    file = tree / "lib/sparse.dll"
    whole = add_dll(file, FLOOR - 0x10000)
    with open(file, "r+b") as open_file:
        open_file.truncate(64 << 20)
        open_file.seek(40 << 20)
        open_file.write(b"data")
    if file.stat().st_blocks * 512 > 4 << 20:
        pytest.skip("this file system makes no holes")
    size, last = file.stat().st_size, file.read_bytes()[len(whole) :]
    rebaser.report("run", tree)
    assert file.stat().st_size == size
    assert file.stat().st_blocks * 512 < 1 << 20
    assert file.read_bytes()[len(whole) :] == last
    subprocess.run(["cp", "--sparse=never", str(file), str(tree / "full.dll")], check=True)
    assert len(rebaser.report("run", tree)["moved"]) == 1
    assert (tree / "full.dll").stat().st_blocks * 512 >= size


def test_a_hole_of_terabytes_is_not_read(rebaser: Rebaser, tree: Path) -> None:
    """Whoever may write one DLL would keep the lock for hours: Windows maps no such image."""
    add_dll(tree / "lib/huge.dll")
    try:
        os.truncate(tree / "lib/huge.dll", 8 << 40)
    except OSError:
        pytest.skip("this file system has no files of 8 TiB")
    report = rebaser.report("run", tree, timeout=60)
    assert [one["path"] for one in report["skipped"]] == ["lib/huge.dll"]
    assert "a file of 4 GiB" in report["skipped"][0]["reason"]
