"""Named tuples as typing.NamedTuple makes them, at a tenth of what those cost a program's start.

`typing` takes 2 ms to import, and each class of its kind 0.15 ms to compile: a sixth of what a run
with nothing to do cost beyond Python's own start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from _collections import _tuplegetter

    class _Fields(type):
        def __new__(kind, name, bases, members):
            fields = tuple(members.get("__annotations__", ()))
            members["_fields"] = fields
            members["_defaults"] = {f: members[f] for f in fields if f in members}
            members["__slots__"] = ()
            members.update((f, _tuplegetter(at, "")) for at, f in enumerate(fields))
            return super().__new__(kind, name, bases, members)

    class NamedTuple(tuple, metaclass=_Fields):
        """A tuple whose elements have names; a class attribute is the default of its element."""

        def __new__(cls, *values, **named):
            """Make one of its elements in order, by name, or of their defaults."""
            if named or len(values) != len(cls._fields):
                given = {**cls._defaults, **dict(zip(cls._fields, values)), **named}
                if len(values) > len(cls._fields) or given.keys() != set(cls._fields):
                    raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}")
                values = [given[name] for name in cls._fields]
            return tuple.__new__(cls, values)

        _make = classmethod(tuple.__new__)

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **named):
            return type(self)(**{**self._asdict(), **named})

        def __getnewargs__(self):
            """Return what copy and pickle give to __new__."""
            return tuple(self)

        def __repr__(self):
            """Return the call that makes an equal one."""
            fields = (f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({', '.join(fields)})"
