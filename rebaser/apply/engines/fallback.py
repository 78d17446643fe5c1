"""Two engines as one: what the first cannot do right, the second does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rebaser.apply.engines import Engine, Staged
from rebaser.apply.engines.cygwin_programs import CygwinEngine


class FallbackEngine:
    """Cygwin's programs first, then another engine for what they left.

    `warn` is called once, with the words of the program that went wrong; images that the programs
    are known not to be able to move go to the other engine without a word.
    """

    name = "cygwin"
    starts_processes = True

    def __init__(self, first: CygwinEngine, second: Engine, warn: Callable[[str], None]) -> None:
        self._first = first
        self._second = second
        self._warn = warn
        self._warned = False
        self.version: str | None = None

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy that either engine can move; return {staged: reason} for the others."""
        left = self._first.relocate(staged)
        self.version = self._first.version
        if self._first.trouble and not self._warned:
            self._warned = True
            all_ = "all images from here on are" if self._first.gave_up else "what they left is"
            self._warn(
                f"Cygwin's programs failed, {all_} moved by the engine {self._second.name}: "
                f"{self._first.trouble}"
            )
        return self._second.relocate([item for item in staged if item.staged in left])
