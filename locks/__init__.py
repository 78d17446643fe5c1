"""File locks by flock(2); they know nothing of what they protect."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from locks.flock import Flock, LockFileError, Mode
    from locks.holders import Holder, describe_holders
    from locks.inherited import Inherited, inherited_lock

__all__ = [
    "Flock",
    "Holder",
    "Inherited",
    "LockFileError",
    "Mode",
    "describe_holders",
    "inherited_lock",
]

# The function `holders` is not among them: that name is its module's here.
_ROOMS = {
    "Flock": "flock",
    "LockFileError": "flock",
    "Mode": "flock",
    "Holder": "holders",
    "describe_holders": "holders",
    "Inherited": "inherited",
    "inherited_lock": "inherited",
}


def __getattr__(name: str) -> object:
    # Imported at first use: a lock that is free needs neither /proc nor dataclasses (8 ms).
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"locks.{_ROOMS[name]}"), name)
