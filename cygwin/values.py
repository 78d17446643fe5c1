"""Named tuples and enumerations as `typing` and `enum` make them, without the import of these.

`typing` takes 2 ms to import and `enum` with what it needs 2 more, each a tenth of what a run with
nothing to do costs beyond Python's own start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum as Enum
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

    class _Members(type):
        def __new__(kind, name, bases, members):
            made = super().__new__(kind, name, bases, members)
            made._members = {word: made(*of) for word, of in members.items() if word.isupper()}
            for word, member in made._members.items():
                member.name = word
                setattr(made, word, member)
            return made

        def __iter__(cls):
            return iter(cls._members.values())

    class Enum(metaclass=_Members):
        """A few values that have names, each a class attribute that is all in capitals.

        What is assigned to it are the arguments of its `__init__`.
        """

        def __repr__(self):
            return f"{type(self).__name__}.{self.name}"

        def __reduce__(self):
            return repr(self)  # a copy of a member, pickled or not, is the member by this name
