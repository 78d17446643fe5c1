"""A real terminal (tmux) in which rebaser is typed, and what is seen on it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 60  # seconds


class Terminal:
    """A tmux session of one window in which one command after the other is typed."""

    def __init__(self, folder: Path, columns: int, background: str) -> None:
        self.socket = str(folder / "tmux")
        self.record = folder / "record"
        self.columns = columns
        self.calls = 0
        # COLORFGBG is how terminals tell a program whether their background is light.
        colours = {"dark": "15;0", "light": "0;15"}[background]
        environment = {
            **{
                k: v for k, v in os.environ.items() if not k.startswith(("TMUX", "REBASER", "SAGE"))
            },
            "PS1": "$ ",
            "TERM": "xterm-256color",
            "COLORFGBG": colours,
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        for name in ("COLUMNS", "LINES", "NO_COLOR", "CI"):
            environment.pop(name, None)
        size = ("-x", str(columns), "-y", "60")
        subprocess.run(
            [*self.tmux(), "-f", "/dev/null", "new-session", "-d", *size, "sh"],
            env=environment,
            check=True,
            timeout=20,
        )
        command = f"cat >{shlex.quote(str(self.record))}"
        subprocess.run([*self.tmux(), "pipe-pane", command], check=True, timeout=20)

    def recorded(self) -> str:
        """Return all that was ever written, without colours: also what was soon wiped away."""
        text = self.record.read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][0-9A-Z]", "", text)

    def tmux(self) -> list[str]:
        return ["tmux", "-S", self.socket]

    def close(self) -> None:
        subprocess.run([*self.tmux(), "kill-server"], check=False, timeout=20)

    def screen(self, *options: str, joined: bool = True) -> str:
        """Return what is on the screen and above it; `joined`: a line that was wrapped as one."""
        options = (*options, "-J") if joined else options
        text = subprocess.run(
            [*self.tmux(), "capture-pane", "-p", "-S", "-1000", *options],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout
        return "\n".join(line.rstrip() for line in text.split("\n"))

    def type(self, *words: object) -> None:
        """Type a call of rebaser; a line that says `NUMBER ended: STATUS` follows it."""
        call = shlex.join([sys.executable, "-m", "rebaser", *map(str, words)])
        # The typed line itself must not look like the end.
        self.calls += 1
        self.send(f'clear; {call}; echo "{self.calls} end""ed: $?"')

    def send(self, line: str) -> None:
        subprocess.run([*self.tmux(), "send-keys", "-l", line], check=True, timeout=20)
        subprocess.run([*self.tmux(), "send-keys", "Enter"], check=True, timeout=20)

    def until(self, seen: Callable[[str], object]) -> str:
        """Wait until the screen satisfies `seen`; return the screen."""
        deadline = time.monotonic() + PATIENCE
        while True:
            screen = self.screen()
            if seen(screen):
                return screen
            assert time.monotonic() < deadline, screen
            time.sleep(0.02)

    def result(self, status: int) -> str:
        """Wait for the end of the command; return the screen."""
        screen = self.until(lambda text: re.search(rf"^{self.calls} ended: \d+$", text, re.M))
        assert f"{self.calls} ended: {status}\n" in screen, screen
        return screen
