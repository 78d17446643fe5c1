"""How often a DLL that moves is opened: on Cygwin an open costs much, and scanners look at each."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from trees import FLOOR, Rebaser, add_dll, add_dlls, overlaps

_OPEN = re.compile(r'open(?:at)?\((?:\w+, )?"([^"]*\.dll)", (\S+?)(?:, 0\d+)?\) += \d')


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: install strace")
@pytest.mark.parametrize("engine", ["builtin"])
def test_each_copy_is_opened_once_and_no_original_again(
    rebaser: Rebaser, tree: Path, tmp_path: Path, engine: str
) -> None:
    """From the first copy that is made to the last rename."""
    add_dlls(tree, 250, first=20)
    trace = tmp_path / "trace"
    words = ["strace", "-f", "-o", str(trace), "-e", "trace=open,openat,rename,renameat,renameat2"]
    result = rebaser("run", tree, "--engine", engine, before=words)
    if "ptrace" in result.err:
        pytest.skip("strace may not trace here")
    assert overlaps(tree) == set()
    lines = trace.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if "O_EXCL" in line and ".dll" in line)
    last = max(n for n, line in enumerate(lines) if "rename" in line and ".dll" in line)
    found = [match for line in lines[first - 1 : last] if (match := _OPEN.search(line))]
    copies = Counter(match[1] for match in found if "O_CREAT" in match[2])
    others = Counter(match[1] for match in found if "O_CREAT" not in match[2])
    assert set(copies.values()) == {1}
    assert len(copies) == 256
    assert not others, "the scan has left the originals open, and no copy is opened again"


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
