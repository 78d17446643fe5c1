"""The table of results: one row a goal, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured, against what, the result, the goal, and whether that was reached.

    `met` is None where there is no goal, or where nothing could be measured.
    """

    what: str
    against: str
    measured: str
    goal: str
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """The last cell."""
        return {True: "met", False: "**not met**", None: "-"}[self.met]


def not_measured(what: str, against: str, goal: str, why: str) -> Row:
    """Return the row of what cannot be measured on this machine."""
    return Row(what, against, f"not measured: {why}", goal)


HEAD = ("what", "against", "measured", "goal", "")


def render(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line((r.what, r.against, r.measured, r.goal, r.verdict)) for r in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ratio(value: float) -> str:
    """Return a ratio as text."""
    return f"{value:.2f} ×"


def milliseconds(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def megabytes(size: float) -> str:
    """Return a size as text; a megabyte is a million bytes."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:,.1f} MB"
