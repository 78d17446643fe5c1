"""Named tuples as typing.NamedTuple makes them, without its import.

`typing` takes 2 ms to import, a tenth of what a run with nothing to do costs beyond Python's own
start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple

    class _Fields(type):
        def __new__(kind, name, bases, members):
            fields = members.get("__annotations__")
            if not fields:  # NamedTuple itself
                return super().__new__(kind, name, bases, members)
            defaults = [members.pop(field) for field in fields if field in members]
            base = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            return type(name, (base,), {"__slots__": (), **members})

    class NamedTuple(metaclass=_Fields):
        """A tuple whose elements have names; a class attribute is the default of its element."""
