"""Which engine relocates."""

from __future__ import annotations

from collections.abc import Callable

from rebaser.apply.engines import BuiltinEngine, Engine
from rebaser.errors import UsageError
from rebaser.files import on_cygwin


def choose_engine(name: str, warn: Callable[[str], None]) -> Engine:
    """Return the engine called `name`, one of `options.ENGINES`.

    `auto` is Cygwin's programs where this is Cygwin or MSYS2 and both are found, with the builtin
    engine behind them, else the builtin engine; `warn` takes what such a fall-back has to say.
    Raises UsageError when a named one cannot run.
    """
    if name == "cygwin" or (name == "auto" and on_cygwin()):
        # They import shutil and tempfile: 4 ms.
        from cygwin.programs import Programs
        from rebaser.apply.engines.cygwin import CygwinEngine

        programs = Programs.find()
        if programs is not None:
            return CygwinEngine(programs, BuiltinEngine() if name == "auto" else None, warn)
        if name == "cygwin":
            raise UsageError(
                "--engine cygwin needs the programs rebase and peflags on PATH: install Cygwin's "
                "or MSYS2's package 'rebase', or take --engine builtin"
            )
    return BuiltinEngine()
