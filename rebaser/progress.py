"""What a person sees on stderr while rebaser works: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time

from rebaser.text import byte_count, complain, plural, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# A run that is over sooner than this shows its result alone, and does not import rich.
LASTS = 0.5  # seconds


class Progress:
    """Told by a run what it is doing; says what went wrong.

    And how far it is, if it lasts: a bar for the whole run, with bytes, DLLs and the time that is
    left, or a line of a log for the work. `mode` is "always", a bar; "auto", a bar on a terminal
    and else the line; or "never".
    """

    def __init__(self, mode: str = "never") -> None:
        self._shows = mode != "never"
        self._draws = mode == "always" or (self._shows and sys.stderr.isatty())
        self._bar: Bar | None = None
        self._began = time.monotonic()
        self.phase("")

    def phase(self, name: str, dlls: int | None = None, size: int = 0) -> None:
        """Begin something that is to be done to so many DLLs (None: not known yet) and bytes."""
        self._name, self._dlls, self._size = name, dlls, size
        self._done = self._written = 0

    def advance(self, dlls: int, size: int = 0) -> None:
        """Say that so many more DLLs are done, and so many more bytes written."""
        self._done += dlls
        self._written += size
        if self._shows and time.monotonic() - self._began > LASTS:
            if self._draws:
                self._draw()
            elif self._dlls and self._name:
                self.tell(f"{self._name} {plural(self._dlls, 'DLL')} ({byte_count(self._size)})")
                self._name = ""

    def tell(self, text: str) -> None:
        """Show one line, above the bar: a warning, or whom a lock is waited for."""
        if self._bar:
            line = f"rebaser: {printable(text)}"
            self._bar.console.print(line, soft_wrap=True, markup=False, highlight=False)
        else:
            complain(text)

    def close(self) -> None:
        """Take away what does not stay."""
        if self._bar:
            self._bar.stop()
        self._bar = None

    def _draw(self) -> None:
        self._bar = bar = self._bar or _bar()
        total, done, amount = None, 0.0, plural(self._done, "file")
        if self._dlls:
            # What is written must still be put in place, which takes a tenth of the time.
            total = 1
            done = 0.9 * self._written / max(self._size, 1) + 0.1 * self._done / self._dlls
            amount = f"{byte_count(self._written)} of {byte_count(self._size)}"
            amount += f", {self._done:,}/{self._dlls:,} DLLs"
        task, name = bar.task_ids[0], self._name
        bar.update(task, description=name, total=total, completed=done, amount=amount)


def _bar() -> Bar:
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
