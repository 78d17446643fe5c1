"""Keeps a tree of Cygwin or MSYS2 DLLs fork-safe."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = [
    "BusyError",
    "Findings",
    "Move",
    "NoRoomError",
    "Options",
    "Placed",
    "Plan",
    "RebaserError",
    "Report",
    "Rules",
    "Scan",
    "Survey",
    "Tree",
    "UsageError",
    "check",
    "find_tree",
    "plan",
    "run",
    "scan",
    "survey",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.checker import Findings, check
    from rebaser.errors import BusyError, RebaserError, UsageError
    from rebaser.options import Options
    from rebaser.planner import Move, NoRoomError, Placed, Plan
    from rebaser.planner import make_plan as plan
    from rebaser.report import Report
    from rebaser.runner import run
    from rebaser.scanner import Rules, Scan, scan
    from rebaser.surveyor import Survey, survey
    from rebaser.tree import Tree, find_tree

_ROOMS = {
    "checker": ("Findings", "check"),
    "errors": ("BusyError", "RebaserError", "UsageError"),
    "options": ("Options",),
    "planner": ("Move", "NoRoomError", "Placed", "Plan", "plan"),
    "report": ("Report",),
    "runner": ("run",),
    "scanner": ("Rules", "Scan", "scan"),
    "surveyor": ("Survey", "survey"),
    "tree": ("Tree", "find_tree"),
}


def __getattr__(name: str) -> object:
    # Imported at first use: most commands need only some of these, and imports take time.
    import importlib

    for room, names in _ROOMS.items():
        if name in names:
            module = importlib.import_module(f"rebaser.{room}")
            return getattr(module, "make_plan" if name == "plan" else name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
