"""Show or set the flags of PE files, under the names and with the output of Cygwin's peflags.

--NAME alone shows the flag by name, --NAME=1 sets it, --NAME=0 clears it; the value is 1, true,
yes, 0, false or no, and follows a short option without a space: -d0. Both at once (-d0 -d) show
what was changed. A file is changed in place: only its flags and its CheckSum, which is right then.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
from collections.abc import Mapping

from cygwin.fault import ImageError
from cygwin.flags import FLAGS, Flag, change_flags, describe, image_flags
from cygwin.image import read_image
from rebaser.commands import Arguments
from rebaser.commands.lists import read_list
from rebaser.commands.parser import Parser
from rebaser.errors import UsageError
from rebaser.text import complain, printable

YES, NO = ("1", "true", "yes", "t", "y"), ("0", "false", "no", "f", "n")
_BOOLS = f"a BOOL is one of {', '.join(YES + NO)}"


def add_arguments(parser: Parser) -> None:
    parser.intermixed = True
    parser.value_hint = _BOOLS
    parser.usage = "%(prog)s [--NAME[=BOOL]] ... [-v] [-T LIST] [PATH ...]"
    parser.add_argument_group("flags", "-L, --NAME; with a value -L0, --NAME=0")
    for flag in (flag for flag in FLAGS if flag.letter):
        short, long = f"-{flag.letter}", f"--{flag.name}"
        append = "append_const"
        parser.add("flags", f"{short} {long}", flag.text, action=append, dest="show", const=flag)
        # Each spelling with a value is an option of its own: argparse's optional values would take
        # the PATH that follows `--dynamicbase`.
        for value, texts in ((True, YES), (False, NO)):
            spellings = " ".join(f"{short}{text} {long}={text}" for text in texts)
            what = {"dest": "change", "const": (flag, value)}
            parser.add("flags", spellings, argparse.SUPPRESS, action=append, **what)
    parser.add("", "-v --verbose", "name all flags that are set")
    parser.add("", "-T --filelist LIST", "a file of paths, one a line, before PATH; - is stdin")
    parser.add("", "paths PATH ...", "a PE file: EXE or DLL")


def main(arguments: Arguments) -> int:
    paths = list(arguments.paths)
    if arguments.filelist is not None:
        listed = read_list("--filelist", arguments.filelist).split(b"\n")
        paths = [os.fsdecode(path) for line in listed if (path := line.rstrip(b"\r"))] + paths
    if not paths:
        raise UsageError("no files: name them, or give a list of them with -T")
    for path in arguments.paths:
        # Python 3.13 takes the 2 of -d2 for a negative number, and so for a PATH.
        if path.startswith("-") and not os.path.lexists(path):
            raise UsageError(f"{path} is no option and no file; {_BOOLS}")
    show, verbose = arguments.show or [], arguments.verbose
    change = dict(arguments.change or [])
    status = 0
    lines = []  # printed when all is done: an output that takes no more is no reason to stop
    for path in paths:
        try:
            before, after = _change(path, change)
        except (ImageError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            left = "; left as it was" if change else ""
            complain(f"{path}: {reason}{left}")
            status = 1
            continue
        if show or verbose or not change:
            lines.append(f"{printable(path)}: {describe(before, after, show, verbose=verbose)}")
    if lines:
        print("\n".join(lines))
    return status


def _change(path: str, change: Mapping[Flag, bool]) -> tuple[int, int]:
    """Change one file as asked; return its flags as they were and as they are."""
    mode = os.O_RDWR if change else os.O_RDONLY
    # A FIFO called x.dll must not make us wait for a writer.
    descriptor = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        image = read_image(descriptor, found.st_size)
        before = after = image_flags(image)
        for flag, value in change.items():
            after = after | flag.bit if value else after & ~flag.bit
        change_flags(descriptor, image, after)
    finally:
        os.close(descriptor)
    if image.signed and after != before:
        complain(f"{path}: its signature is no longer valid")
    return before, after
