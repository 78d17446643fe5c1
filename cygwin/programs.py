"""Cygwin's programs `rebase` and `peflags`: the one place that starts processes to move images."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from cygwin.address_space import X86_64
from cygwin.values import NamedTuple

_MOST_ARGUMENTS = 8000  # bytes; longer lists of files go through a file
_MOST_OUTPUT = 64 << 10  # bytes kept of each stream
_VERSION = re.compile(r"^(?:rebase|peflags) version (\S+)", re.MULTILINE)
# Cygwin prints it at each start on a Windows that it does not know yet, and under Wine.
_FAST_CWD = re.compile(
    r"Cygwin WARNING:\s+Couldn't compute FAST_CWD pointer\..*?problems\.html\s*", re.DOTALL
)


class ProgramError(Exception):
    """A program could not be run; no file was touched."""

    def __init__(self, argv: Sequence[str], error: OSError) -> None:
        super().__init__(f"{_shortened(argv)} could not be started: {error.strerror or error}")


class Outcome(NamedTuple):
    """What became of one call. A status of 0 proves nothing: read the files again."""

    argv: tuple[str, ...]
    status: int  #: the exit status; negative: the number of the signal that ended it
    stdout: str  #: its last 64 KiB, without the blanks at both ends
    stderr: str  #: likewise, and without Cygwin's FAST_CWD warning
    timed_out: float | None = None  #: seconds after which it was killed

    def __str__(self) -> str:
        """Return the program, its arguments, how it ended, and its words."""
        if self.timed_out is not None:
            end = f"was killed after {self.timed_out:g} seconds"
        elif self.status < 0:
            names = {number.value: number.name for number in signal.Signals}
            end = f"was killed by {names.get(-self.status, f'signal {-self.status}')}"
        else:
            end = f"ended with status {self.status}"
        lines = f"{self.stderr}\n{self.stdout}".split("\n")
        words = "; ".join(filter(None, map(str.strip, lines)))
        words = words if len(words) <= 400 else f"{words[:200]} ... {words[-200:]}"
        return f"{_shortened(self.argv)} {end}" + (f", saying: {words}" if words else "")


class Programs(NamedTuple):
    """Where `rebase` and `peflags` are: absolute paths."""

    rebase_path: str
    peflags_path: str

    @classmethod
    def find(cls, path: str | None = None) -> Programs | None:
        """Return both programs as found on `path` (default: PATH), or None when one is missing."""
        found = [shutil.which(name, path=path) for name in ("rebase", "peflags")]
        paths = [os.path.abspath(program) for program in found if program]
        return cls(*paths) if len(paths) == 2 else None

    def version(self, *, timeout: float = 30) -> str | None:
        """Ask `rebase` for its version, `4.6.3`; None: it does not say one. Raises ProgramError."""
        outcome = run([self.rebase_path, "-V"], timeout=timeout)
        found = _VERSION.search(f"{outcome.stdout}\n{outcome.stderr}")
        return found[1] if found else None

    def rebase(
        self, base: int, files: Sequence[str], *, machine: int, cwd: str, timeout: float
    ) -> Outcome:
        """Move `files` to adjacent slots upward from the address `base`, all of one machine.

        Names are relative to `cwd` and sorted in the order of their slots: Cygwin's build takes
        them as given, MSYS2's sorts them. It stops at the first file that it cannot do, changes
        TimeDateStamp, and leaves a file that is at its base already. Raises ProgramError.
        """
        options = ["-8" if machine == X86_64 else "-4", "-b", f"0x{base:x}"]
        return _run_on([self.rebase_path, *options], files, cwd, timeout)

    def clear_dynamic_base(self, files: Sequence[str], *, cwd: str, timeout: float) -> Outcome:
        """Clear DYNAMIC_BASE in `files`, names relative to `cwd`. Raises ProgramError."""
        return _run_on([self.peflags_path, "-d0"], files, cwd, timeout)

    def remember(self, files: Sequence[str], *, cwd: str, timeout: float) -> Outcome:
        """Record where `files` lie now in Cygwin's database (rebase 4.6 and newer: -M).

        The next `rebase -s` leaves them there. Raises ProgramError, and ValueError for a name that
        a list cannot hold.
        """
        return _run_on([self.rebase_path, "-M"], files, cwd, timeout, in_list=True)


def _run_on(
    argv: list[str], files: Sequence[str], cwd: str, timeout: float, *, in_list: bool = False
) -> Outcome:
    if not in_list and sum(map(len, files)) <= _MOST_ARGUMENTS:
        return run([*argv, "--", *files], cwd=cwd, timeout=timeout)
    argv = [*argv, "-T"]
    for name in files:
        if "\n" in name or len(os.fsencode(name)) > 250:
            # rebase cuts a line of its list after 261 bytes.
            raise ValueError(f"{name} is too long or has a line break, so not fit for a list")
    try:
        with tempfile.NamedTemporaryFile(prefix="rebaser-") as file:
            file.write(b"".join(os.fsencode(name) + b"\n" for name in files))
            file.flush()
            return run([*argv, file.name], cwd=cwd, timeout=timeout)
    except OSError as error:
        raise ProgramError(argv, error) from None


def run(argv: Sequence[str], *, timeout: float, cwd: str | None = None) -> Outcome:
    """Run a program to its end, or kill it and its children after `timeout` seconds.

    Raises ProgramError when it cannot be run: for want of a process (on Cygwin fork itself may be
    broken), of the program, or of a temporary file for its words.
    """
    import subprocess

    timed_out = None
    try:
        # Files, not pipes: a child that the program left behind could keep a pipe open for ever.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                timed_out = timeout
            finally:
                # Also on ^C, which does not reach a process in a session of its own.
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(10)  # one that hangs in the kernel does not even die
            status = -signal.SIGKILL if process.returncode is None else process.returncode
            return Outcome(tuple(argv), status, _words(stdout), _words(stderr), timed_out)
    except OSError as error:
        raise ProgramError(argv, error) from None


def _words(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST_OUTPUT))
    text = file.read(_MOST_OUTPUT).decode(sys.getfilesystemencoding(), "backslashreplace")
    return _FAST_CWD.sub("", text).strip()


def _shortened(argv: Sequence[str]) -> str:
    if len(argv) > 12:
        argv = [*argv[:8], f"... {len(argv) - 9} more ...", argv[-1]]
    return " ".join(word if word.startswith("... ") else shlex.quote(word) for word in argv)
