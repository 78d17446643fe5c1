"""What a person sees on stderr while rebaser works: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from _thread import allocate_lock  # threading itself takes 2 ms to import
from contextlib import suppress

from rebaser.text import byte_count, plural, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

# A run that is over sooner than this shows its result alone, and does not import rich.
LASTS = 0.5  # seconds


class Progress:
    """Told by a run what it is doing; says what went wrong and nothing else."""

    def phase(self, name: str, dlls: int | None = None, size: int = 0) -> None:
        """Begin something that is to be done to so many DLLs, of so many bytes in all.

        None: nobody knows yet how many.
        """

    def advance(self, dlls: int) -> None:
        """Say that so many more DLLs are done; called from any thread."""

    def copied(self, size: int) -> None:
        """Say that so many more bytes are written; called from any thread."""

    def tell(self, text: str) -> None:
        """Show one line: a warning, or whom a lock is waited for."""
        with suppress(OSError):  # where nobody can be told, the work goes on
            print(f"rebaser: {printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take away what does not stay."""


class Lines(Progress):
    """For log files: one line for the work, if it lasts."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._began = time.monotonic()
        self.phase("")

    def phase(self, name: str, dlls: int | None = None, size: int = 0) -> None:
        """Begin something; how much it is is known from now on."""
        with self._lock:
            self._name, self._dlls, self._size = name, dlls, size
            self._done = self._written = 0

    def advance(self, dlls: int, size: int = 0) -> None:
        """Count DLLs and bytes, and show what there is to be shown."""
        with self._lock:
            self._done += dlls
            self._written += size
            if time.monotonic() - self._began > LASTS:
                self._show()

    def copied(self, size: int) -> None:
        """Count bytes."""
        self.advance(0, size)

    def _show(self) -> None:
        if self._dlls and self._name:
            self.tell(f"{self._name} {plural(self._dlls, 'DLL')} ({byte_count(self._size)})")
            self._name = ""


class Live(Lines):
    """For terminals: one bar for the whole run, with bytes, DLLs and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: RichProgress | None = None

    def tell(self, text: str) -> None:
        """Print one line above the bar."""
        if self._bar is None:
            super().tell(text)
        else:
            from rich.text import Text

            self._bar.console.print(Text(f"rebaser: {printable(text)}"), soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        if self._bar is None:
            self._bar = _bar()
        if self._dlls:
            # What is written must still be put in place, which takes a tenth of the time.
            done = 0.9 * self._written / max(self._size, 1) + 0.1 * self._done / self._dlls
            amount = f"{byte_count(self._written)} of {byte_count(self._size)}"
            amount += f", {self._done:,}/{self._dlls:,} DLLs"
        else:
            done, amount = 0, plural(self._done, "file")
        self._bar.update(
            self._bar.task_ids[0],
            description=self._name,
            total=1 if self._dlls else None,
            completed=done,
            amount=amount,
        )


def _bar() -> RichProgress:
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.fields[amount]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task("", total=None, amount="")
    bar.start()
    return bar


def make_progress(mode: str, quiet: bool) -> Progress:
    """Return what suits `mode`: "always" and "never", or "auto", which looks where stderr goes."""
    if quiet or mode == "never":
        return Progress()
    return Live() if mode == "always" or sys.stderr.isatty() else Lines()
