"""Which engine `--engine` means on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rebaser.apply.engines import Engine
from rebaser.errors import UsageError


def choose_engine(name: str, warn: Callable[[str], None]) -> Engine:
    """Return the engine called `name`, one of `options.ENGINES`.

    `warn` takes what a fall-back has to say.

    `auto` is Cygwin's programs where this is Cygwin or MSYS2 and both are found, with the builtin
    engine behind them, else the builtin engine. Raises UsageError when a named one cannot run.
    """
    from rebaser.apply.engines.builtin import BuiltinEngine

    if name == "builtin" or (name == "auto" and sys.platform not in ("cygwin", "msys")):
        return BuiltinEngine()

    from cygwin.programs import Programs
    from rebaser.apply.engines.cygwin_programs import CygwinEngine
    from rebaser.apply.engines.fallback import FallbackEngine

    programs = Programs.find()
    if name == "auto":
        if programs is None:
            return BuiltinEngine()
        return FallbackEngine(CygwinEngine(programs), BuiltinEngine(), warn)
    if programs is None:
        raise UsageError(
            "--engine cygwin needs the programs rebase and peflags on PATH: install Cygwin's or "
            "MSYS2's package 'rebase', or take --engine builtin"
        )
    return CygwinEngine(programs)
