"""The failures that rebaser expects; each knows the exit status that it ends the program with."""

from __future__ import annotations


class RebaserError(Exception):
    """An expected failure: one sentence that names the file, what was left and what to do."""

    exit_status = 1


class UsageError(RebaserError):
    """The command line or the environment asks for something that cannot be."""

    exit_status = 2


class BusyError(RebaserError):
    """Could not take the lock in the time allowed (EX_TEMPFAIL of sysexits.h)."""

    exit_status = 75
