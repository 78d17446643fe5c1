"""Keeps a tree of Cygwin or MSYS2 DLLs fork-safe."""

from __future__ import annotations

import sys

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.api import *  # noqa: F403 - the names are listed once, there


class _Package(type(sys)):  # type: ignore[misc]
    """A package in which `run`, `check`, `scan` and `plan` are functions, not its rooms.

    The import system binds each submodule to its package; the rooms of these names are imported
    from (`from rebaser.run import …`), and the names are what docs/api.md says.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("run", "check", "scan", "plan") and isinstance(value, type(sys))):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        # Imported at first use: `rebaser lock` must not pay for what `rebaser run` needs.
        if name.startswith("_") or name == "api":
            raise AttributeError(f"module 'rebaser' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module("rebaser.api"), name)


sys.modules[__name__].__class__ = _Package
