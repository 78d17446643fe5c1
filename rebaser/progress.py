"""What a person sees on stderr while rebaser works: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Protocol

from rebaser.text import byte_count, plural, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# A phase that is over sooner than this is not worth a picture, nor the import of rich.
LASTS = 0.25  # seconds


class Progress(Protocol):
    """Told by a run what it is doing."""

    def phase(self, name: str, total: int | None = None, *, in_bytes: bool = False) -> None:
        """Begin a phase of `total` files, or bytes, or of unknown length."""
        ...  # a Protocol's member has no body

    def advance(self, amount: int) -> None:
        """Say that so many files or bytes more are done; called from any thread."""
        ...  # a Protocol's member has no body

    def tell(self, text: str) -> None:
        """Show one line: a warning, or whom a lock is waited for."""
        ...  # a Protocol's member has no body

    def close(self) -> None:
        """Take the picture away; what was told stays."""
        ...  # a Protocol's member has no body


class Quiet:
    """Tells what went wrong, and nothing else."""

    def phase(self, name: str, total: int | None = None, *, in_bytes: bool = False) -> None:
        """Show nothing."""

    def advance(self, amount: int) -> None:
        """Show nothing."""

    def tell(self, text: str) -> None:
        """Print the line; where nobody can be told, the work goes on."""
        with suppress(OSError):
            print(f"rebaser: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing: there is no picture."""


class Lines(Quiet):
    """For log files: one line a phase that has something to do."""

    def phase(self, name: str, total: int | None = None, *, in_bytes: bool = False) -> None:
        """Print the phase and how much it is."""
        if total:
            self.tell(f"{name}: {byte_count(total) if in_bytes else plural(total, 'file')}")


class Live:
    """For terminals: a bar that appears when a phase lasts."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        from threading import Lock  # 2 ms that only a terminal spends

        self._lock = Lock()
        self._name = ""
        self._total: int | None = None
        self._in_bytes = False
        self._done = 0
        self._began = time.monotonic()

    def phase(self, name: str, total: int | None = None, *, in_bytes: bool = False) -> None:
        """Begin a new bar."""
        with self._lock:
            self._remove()
            self._name, self._total, self._in_bytes = name, total, in_bytes
            self._done = 0
            self._began = time.monotonic()

    def advance(self, amount: int) -> None:
        """Move the bar; make it, if the phase has lasted."""
        with self._lock:
            self._done += amount
            if self._bar is None and time.monotonic() - self._began > LASTS:
                self._make()
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._done)

    def tell(self, text: str) -> None:
        """Print one line above the bar."""
        with self._lock:
            if self._bar is not None:
                from rich.text import Text

                self._bar.console.print(Text(f"rebaser: {printable(text)}"), soft_wrap=True)
            else:
                Quiet().tell(text)

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._remove()

    def _make(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            ProgressColumn,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
        if self._total is None:
            columns.append(TextColumn("{task.completed:,.0f} files"))
        else:
            columns += [
                BarColumn(),
                DownloadColumn() if self._in_bytes else MofNCompleteColumn(),
                TimeRemainingColumn(),
            ]
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._name, total=self._total, completed=self._done)
        self._bar.start()

    def _remove(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_progress(mode: str, quiet: bool) -> Progress:
    """Return what suits `mode`: "always" and "never", or "auto", which looks where stderr goes."""
    if quiet or mode == "never":
        return Quiet()
    if mode == "always" or sys.stderr.isatty():
        return Live()
    return Lines()
