"""What a person sees on a real terminal (tmux), 80 and 200 columns wide, dark and light."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pe
import pytest
from terminal import PATIENCE, Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not there: install tmux"),
]

FLOOR = 0x2_0001_0000
SLOT = 0x10000


@pytest.fixture(params=[(80, "dark"), (200, "light")], ids=["80-dark", "200-light"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, *request.param)
    try:
        yield terminal
    finally:
        terminal.close()


def put(path: Path, base: int, slots: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pe.build(base=base, data_size=(slots - 1) * SLOT + 0x2000))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of two DLLs that overlap and one with a terminal escape and markup in its name."""
    root = tmp_path / "tree"
    put(root / "lib/a.dll", FLOOR, 3)
    put(root / "lib/b.dll", FLOOR + 2 * SLOT, 2)
    put(root / "lib/[red]evil\x1b[5m.dll", FLOOR + 6 * SLOT)
    return root


def test_map(terminal: Terminal, tree: Path) -> None:
    terminal.type("map", tree)
    screen = terminal.result(0)
    lines = screen.splitlines()
    assert any("x86_64: 3 DLLs, 2 OVERLAPPING" in line for line in lines)
    row = next(line for line in lines if line.startswith("0x200000000"))
    assert row.split(" ", 1)[1].startswith(" ██X▓··█")
    assert row.endswith("<X")
    assert len(row) == {80: 12 + 64 + 3, 200: 12 + 128 + 3}[terminal.columns]
    assert "█ DLL   ▓ next DLL   X OVERLAP" in screen
    coloured = terminal.screen("-e")
    overlap = next(line for line in coloured.splitlines() if line.startswith("0x200000000"))
    # Bold white on red, so that the overlap is seen on either background.
    assert re.search(r"\x1b\[1m\x1b\[37m\x1b\[41mX|\x1b\[[0-9;]*41[0-9;]*mX", overlap), overlap


def test_map_without_colours(terminal: Terminal, tree: Path) -> None:
    terminal.send("export NO_COLOR=1")
    terminal.type("map", tree)
    assert "3 DLLs, 2 OVERLAPPING" in terminal.result(0)
    assert "\x1b[41m" not in terminal.screen("-e")


def test_check(terminal: Terminal, tree: Path) -> None:
    terminal.type("check", tree)
    screen = terminal.result(1)
    assert "lib/a.dll" in screen
    assert "lib/b.dll" in screen
    assert "\\x1b[5m" in screen
    assert "[red]evil" in screen
    assert "rebaser run " in screen
    assert "\x1b[5m" not in terminal.screen("-e")


def test_run_ends_with_a_summary(terminal: Terminal, tree: Path) -> None:
    terminal.type("run", tree, "--engine", "builtin")
    screen = terminal.result(0)
    assert "moved 1 DLL " in screen
    assert "no overlap is left" in screen
    assert "\x1b[1m\x1b[32mmoved 1 DLL" in terminal.screen("-e")  # green
    terminal.type("run", tree)
    assert "nothing to do" in terminal.result(0)


def test_run_shows_its_progress(terminal: Terminal, tmp_path: Path) -> None:
    root = tmp_path / "large"
    for number in range(1500):
        put(root / f"{number}.dll", 0x1_8000_0000, 2)
    terminal.type("run", root, "--engine", "builtin")
    bar = re.compile(
        r"moving .*[━╸].* [MG]B, [\d,]+/1,500 DLLs \d+:\d\d:\d\d|moving .*/1,500 DLLs -:--:--"
    )
    screen = terminal.result(0)
    # From the record: the bar may be gone before anybody looks at the screen.
    line = bar.search(terminal.recorded())
    assert line, terminal.recorded()
    assert len(line[0]) < terminal.columns
    assert "moved 1,500 DLLs" in screen
    assert "━" not in screen  # the bar is taken away


def test_run_names_who_holds_the_lock(terminal: Terminal, tree: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-m", "rebaser", "lock", "--root", str(tree), "--", "sleep", "600"]
    )
    try:
        lock = tree / ".rebaser/rebase.lock"
        deadline = time.monotonic() + PATIENCE
        while not lock.exists() or Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        terminal.type("run", tree)
        words = f" by pid {holder.pid} (sleep 600)"
        terminal.until(lambda text: words in text)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert "no overlap is left" in terminal.result(0)


def test_an_interrupt_is_one_line(terminal: Terminal, tmp_path: Path) -> None:
    root = tmp_path / "large"
    for number in range(1500):
        put(root / f"{number}.dll", 0x1_8000_0000, 2)
    terminal.type("run", root, "--engine", "builtin")
    terminal.until(lambda text: "━" in text or "ended:" in text)
    subprocess.run([*terminal.tmux(), "send-keys", "C-c"], check=True, timeout=20)
    screen = terminal.result(130)
    assert "interrupted" in screen
    assert "Traceback" not in screen
    assert "━" not in screen


def test_status_and_help(terminal: Terminal, tree: Path) -> None:
    terminal.type("status", tree)
    assert "2 OVERLAPPING" in terminal.result(0)
    terminal.type("run", "--help")
    screen = terminal.result(0)
    assert "--only-from FILE" in screen
    options = [line for line in screen.splitlines() if line.startswith("  --")]
    assert max(map(len, options)) < terminal.columns
