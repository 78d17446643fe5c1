"""How a program stands towards its caller: the standard streams, and the signals that end it."""

from __future__ import annotations

import _signal as signal
import io
import os
import sys


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, the argument, has come; all that cleans up after ^C cleans up after it."""


def open_streams() -> None:
    """Open /dev/null in place of standard streams that our caller has closed.

    Else the next file opened would be descriptor 1, and what is printed would land in it. The
    descriptors are close-on-exec: a command that replaces us has them closed, as we had.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, and those below are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):
        return
    # A name that the terminal's encoding lacks is shown escaped, as on stderr.
    output.reconfigure(errors="backslashreplace")
    if isinstance(output.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: what cannot be written would be lost, and argparse would not say so.
        sys.stdout = open(
            1, "w", encoding=output.encoding, errors="backslashreplace", closefd=False
        )


def handle_signals(handler: object) -> None:
    """Say what SIGTERM and SIGHUP do, unless our caller ignores them (nohup)."""
    # A native Windows Python, which lacks SIGHUP, is told later on that it will not do.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def terminate(number: int, _frame: object) -> None:
    """Raise Terminated, for the signal that has come."""
    # What ends a session sends both, and some send them twice: cleaning up goes on.
    handle_signals(signal.SIG_IGN)
    raise Terminated(number)


def discard(number: int) -> None:
    """Send what is still to be printed on a descriptor nowhere: it takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
