"""What a user sees of a bug: one line and the path of a log that holds the traceback."""

from __future__ import annotations

import sys
import tempfile
import traceback

from rebaser import __version__


def report_bug(error: Exception) -> str:
    """Write the traceback to a new file in the temporary folder; return the line to print."""
    summary = f"{type(error).__name__}: {error}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rebaser-bug-", suffix=".log", delete=False, errors="backslashreplace"
        ) as log:
            log.write(f"rebaser {__version__}, Python {sys.version}\n{sys.argv!r}\n\n")
            log.write("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    except OSError:
        return f"this is a bug in rebaser ({summary}); no log could be written"
    return f"this is a bug in rebaser ({summary}); please report it with {log.name}"
