"""The engine that relocates by rebaser's own code, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cygwin.errors import RelocationError
from cygwin.relocation import relocate
from rebaser.apply.engines import Staged


class BuiltinEngine:
    """Moves staged copies without any program: it works where fork does not."""

    name = "builtin"
    version: str | None = None
    starts_processes = False

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy; return {staged: reason} for those that could not be moved."""
        reasons = {}
        for item in staged:
            try:
                clear = item.clear_dynamic_base
                relocate(item.copy, item.image, item.new_base, clear_dynamic_base=clear)
            except RelocationError as error:
                reasons[item.staged] = str(error)
            except OSError as error:
                reasons[item.staged] = f"its copy could not be written ({error.strerror or error})"
        return reasons
