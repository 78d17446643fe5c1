"""What a person sees of trees from none to 1,328 DLLs: one screen, whatever the tree.

Each session is kept as text in the folder `sessions`; one that is removed there is written anew.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from terminal import Terminal
from trees import add_dll

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not there: install tmux"),
]

SCREEN = 24
KEPT = Path(__file__).parent / "sessions"
SHOWN_AS = "/opt/sage-10.8"  # as long as what mkdtemp gives
FOLDERS = ("bin", "lib/python3.12/site-packages/numpy/_core", "lib/R/library/stats/libs")


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="d", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def fill(root: Path, count: int) -> None:
    """Make a tree of DLLs as linkers leave them; some are signed, damaged, or read-only."""
    (root / "var").mkdir()
    for number in range(count):
        base = 0x1_8000_0000 if number % 3 else 0x4_0000_0000 + number // 3 * 0x8000
        path = root / FOLDERS[number % len(FOLDERS)] / f"cyg-library-{number}.dll"
        data = add_dll(path, base, data_size=0x1000 * (2 + number % 24))
        if number % 15 == 3:
            path.chmod(0o444)
        elif number % 50 == 4:
            add_dll(path, 0x1_8000_0000, directories={4: (0x400, 8)})
        elif number % 50 == 7:
            path.write_bytes(data[: len(data) // 2])


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Have a process that has a DLL open; it has the same one to the end, whatever is done here.

    Only Cygwin refuses to replace such a file. Elsewhere it is moved as any other.
    """
    before = path.read_bytes()
    with path.open("rb") as file:
        user = subprocess.Popen(["sleep", "600"], stdin=file)
        try:
            yield
            assert path.read_bytes() != before, "it was moved"
            assert file.read() == before, "who had it open has it as it was"
            assert user.poll() is None
        finally:
            user.kill()
            user.wait()


def plain(screen: str, folder: Path) -> str:
    shown = screen.replace(str(folder), SHOWN_AS)
    return re.sub(r"\b\d+\.\d s\)", "0.3 s)", shown)


def the_session(terminal: Terminal, folder: Path) -> str:
    """Return what a person sees who looks at a tree, plans, runs, runs again and looks again."""
    session = ""
    for words in ("check", "run -n", "run", "run", "check"):
        terminal.type(*words.split(), folder)
        ended = re.compile(rf"^{terminal.calls} ended: [01]$", re.M)
        screen = terminal.until(ended.search)
        lines = terminal.screen(joined=False).split("\n")
        end = next(number for number, line in enumerate(lines) if ended.match(line))
        assert lines[:end] == screen.split("\n")[:end], "the terminal has broken a line"
        assert end + 1 < SCREEN, screen  # and the prompt
        status = lines[end].rpartition(" ")[2]
        shown = "\n".join(lines[:end])
        session += f"$ rebaser {words} {SHOWN_AS}\n{plain(shown, folder)}\n[{status}]\n\n"
    return session


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("count", [0, 15, 166, 1328])
def test_one_screen_whatever_the_tree(
    folder: Path, tmp_path: Path, count: int, columns: int
) -> None:
    fill(folder, count)
    used = folder / FOLDERS[2] / "cyg-library-2.dll"
    terminal = Terminal(tmp_path, columns, "dark")
    try:
        with in_use(used) if count else nullcontext():
            session = the_session(terminal, folder)
    finally:
        terminal.close()
    kept = KEPT / f"{count}-dlls-{columns}-columns.txt"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(session, encoding="utf-8")
        pytest.fail(f"{kept} was written: read it, and keep it if it is good")
    assert session == kept.read_text(encoding="utf-8")
