"""How names, addresses and sizes read on a terminal, and how a line is said on stderr."""

from __future__ import annotations

import os
import sys

from rebaser.errors import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


def printable(text: str) -> str:
    r"""Return `text` with control characters and undecodable bytes shown as \xNN.

    A file name may hold a terminal escape, a newline, or bytes that are not UTF-8
    (which Python keeps as lone surrogates, PEP 383); none of them reaches a terminal.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else char.encode("ascii", "backslashreplace").decode()


def complain(text: str) -> None:
    """Print one line on stderr, whatever bytes its file names hold."""
    with suppress(OSError):  # a stderr that is full has no room for that either
        print(f"rebaser: {printable(text)}", file=sys.stderr, flush=True)


def recoded(value: Any, how: Callable[[str], str]) -> Any:
    """Return a value of JSON whose texts have gone through `to_utf8` or `from_utf8`."""
    if isinstance(value, str):
        return how(value)
    if isinstance(value, dict):
        return {key: recoded(one, how) for key, one in value.items()}
    return [recoded(one, how) for one in value] if isinstance(value, (list, tuple)) else value


def to_utf8(text: str) -> str:
    """Return text with the file names in it read as UTF-8, whatever this user's locale is."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def from_utf8(text: str) -> str:
    """Return text with the file names in it as this user's locale reads them."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def address(value: int) -> str:
    """Return an address as rebaser prints it everywhere, `0x200010000`."""
    return f"0x{value:x}"


def byte_count(value: int) -> str:
    """Return a number of bytes for people: `712 bytes`, `58.0 MB`."""
    if value < 1000:
        return f"{value} bytes"
    for unit, bytes_ in (("kB", 1e3), ("MB", 1e6)):
        if value < 999.95 * bytes_:
            return f"{value / bytes_:.1f} {unit}"
    return f"{value / 1e9:.1f} GB"


def address_size(value: float) -> str:
    """Return the size of a range of addresses, in bytes, for people: `64 KiB`, `7.9 GiB`."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.{0 if value == int(value) or value >= 100 else 1}f} {units[0]}"


def plural(count: int, noun: str) -> str:
    """Return `1 image`, `2 images`, `1,312 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def names(paths: Sequence[str]) -> str:
    """Return names as a person lists them: `a.dll, b.dll, c.dll`, or `a.dll and 162 more`."""
    if len(paths) > 3:
        return f"{paths[0]} and {len(paths) - 1:,} more"
    return ", ".join(paths)


def shortened(line: str, width: int) -> str:
    """Return a line with its middle left out, so that no terminal breaks it."""
    half = (width - 1) // 2
    return line if len(line) <= width else f"{line[:half]}…{line[-half:]}"


def terminal_width() -> int:
    """Return the columns of the terminal, as shutil.get_terminal_size has it; 80 without one."""
    with suppress(KeyError, ValueError):
        return int(os.environ["COLUMNS"])
    with suppress(OSError):
        return os.get_terminal_size(1).columns or 80
    return 80
