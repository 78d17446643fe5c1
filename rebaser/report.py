"""What a run did, as values."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.plan.placement import Move


class Seconds(NamedTuple):
    """How long each stage of a run took; `wait` is for the lock."""

    wait: float = 0.0
    scan: float = 0.0
    plan: float = 0.0
    stage: float = 0.0
    commit: float = 0.0
    total: float = 0.0
    exclusive: float = 0.0
    """How long the lock was held exclusively."""


class Report(NamedTuple):
    """The result of a run.

    Paths are relative to the root; `skipped` and `failed` are (path, reason), `overlaps` two paths.
    """

    root: str
    engine: str
    engine_version: str | None = None
    run: int | None = None
    covered_by: int | None = None
    scanned: int = 0
    images: int = 0
    kept: int = 0
    moved: tuple[Move, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()
    bytes_written: int = 0
    seconds: Seconds = Seconds()
    planned: bool = False
    """The moves were planned only (--dry-run)."""

    @property
    def exit_status(self) -> int:
        """0 where no overlap is left and nothing failed, else 1."""
        return 1 if self.overlaps or self.failed else 0
