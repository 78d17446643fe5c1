"""The JSON of every command: one object with its format, and the shapes that several have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from cygwin.address_space import machine_name
from rebaser.report import Group, Move
from rebaser.text import address, recoded, to_utf8

FORMAT = 1
"""It grows when a field goes away or means something else; new fields may come without that."""


def print_json(fields: Mapping[str, object]) -> None:
    r"""Print one object, with its format first; docs/json.md describes what each command prints.

    A byte of a path that is not UTF-8 is \udcNN, as Python has it in text (PEP 383). So it is in
    every locale: a name has the letters that its bytes are in UTF-8.
    """
    print(json.dumps(recoded({"format": FORMAT, **fields}, to_utf8)))


def range_object(low: int, high: int) -> dict[str, object]:
    """Return the addresses `[low, high)`."""
    return {"low": address(low), "high": address(high)}


def group_objects(groups: Iterable[Group]) -> list[dict[str, object]]:
    """Return DLLs that hang together by overlaps; `cure` is "run" where a run moves them apart."""
    return [
        {**range_object(one.low, one.high), "paths": one.paths, "cure": one.cure} for one in groups
    ]


def reason_objects(
    some: Iterable[tuple[str, str]], called: str = "reason"
) -> list[dict[str, object]]:
    """Return the (path, reason) of what was skipped or failed."""
    return [{"path": path, called: reason} for path, reason in some]


def move_objects(moves: Iterable[Move]) -> list[dict[str, object]]:
    """Return moves; equal bases mean that only the flag DYNAMIC_BASE is cleared."""
    return [
        {
            "path": move.path,
            "machine": machine_name(move.machine),
            "old_base": address(move.old_base),
            "new_base": address(move.new_base),
            "slot_size": move.slot_size,
            "reason": move.reason,
        }
        for move in moves
    ]
