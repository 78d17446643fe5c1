"""The JSON of every command: one object with its format, and how values are told in it."""

from __future__ import annotations

from cygwin.address_space import machine_name
from rebaser.scan.skip import Skipped
from rebaser.text import address, to_utf8

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1
"""It grows when a field goes away or means something else; new fields may come without that."""
ADDRESSES = ("base", "high", "low", "new_base", "old_base")
# Of (path, text): what the text is called.
PAIRS = {"failed": "reason", "problems": "problem", "incurable": "problem"}


def print_json(**fields: object) -> None:
    r"""Print one object, with its format first; docs/json.md describes what each command prints.

    A byte of a path that is not UTF-8 is \udcNN, as Python has it in text (PEP 383). So it is in
    every locale: a name has the letters that its bytes are in UTF-8.
    """
    import json  # 1 ms, and every command can print something else

    print(json.dumps(plain({"format": FORMAT, **fields})))


def plain(value: Any, name: str = "") -> Any:
    """Return the value of a field as JSON has it: our tuples of named elements are objects."""
    if isinstance(value, Skipped):
        return plain({"path": value.path, "reason": value.reason})
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(one, key) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        if name in PAIRS:
            value = [dict(zip(("path", PAIRS[name]), pair)) for pair in value]
        return [plain(one) for one in value]
    if isinstance(value, str):
        return to_utf8(value)
    if isinstance(value, float):  # seconds
        return round(value, 6)
    if name in ADDRESSES:
        return address(value)
    return machine_name(value) if name == "machine" else value
