"""The records of the runs: their numbers, what they were asked for, how they ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from rebaser.state.folder import State, StateError

KEPT_RECORDS = 30

# No tree sees so many runs; a made-up name must not make the next number as long.
LONGEST_NAME = len("999999999.json")


class Request(NamedTuple):
    """What a run was asked for: its options as one text, and which images may move.

    `below` is the part of the tree asked for ("" is all of it, else a path that ends in a slash);
    `only` are the paths named by --only-from, or None for every path.
    """

    options: str
    below: str = ""
    only: frozenset[str] | None = None

    @property
    def is_for_all(self) -> bool:
        """Whether every image of the tree may move."""
        return not self.below and self.only is None

    def names(self, path: str) -> bool:
        """Return whether the image at `path`, relative to the root, may move."""
        return path.startswith(self.below) and (self.only is None or path in self.only)

    def concerns(self, path: str) -> bool:
        """Return whether what happened to a file or folder matters to what was asked for."""
        if path == "." or self.names(path):
            return True
        inside = f"{path}/"
        if self.only is not None:
            return any(name.startswith(inside) for name in self.only)
        return self.below.startswith(inside)

    def covers(self, other: Request) -> bool:
        """Return whether a run for this request does all the work of the other."""
        if self.options != other.options:
            return False
        if other.only is not None and self.only is None:
            return all(path.startswith(self.below) for path in other.only)
        return other.below.startswith(self.below) and (
            self.only is None or (other.only is not None and other.only <= self.only)
        )


class Record(NamedTuple):
    """One run. `failed` and `overlaps` are what was left, by paths relative to the root."""

    number: int
    began: str
    request: Request
    finished: str | None = None
    engine: str = ""
    moved: int = 0
    bytes_written: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()


def newest_number(state: State) -> int:
    """Return the number of the newest run that began, 0 where there is none.

    Where that cannot be read it is a number that no run has: then no run covers another.
    """
    try:
        return max(_numbers(state), default=0)
    except OSError:
        return sys.maxsize


def begin(state: State, request: Request) -> Record:
    """Record that a run begins: to be called with the exclusive lock, before the scan."""
    try:
        numbers = sorted(_numbers(state))
    except OSError as error:
        raise StateError(
            f"{state.runs} cannot be read ({error.strerror}); nothing was changed. "
            "Make it readable, or remove it: the records of past runs are lost, no more"
        ) from error
    record = Record(number=max(numbers, default=0) + 1, began=_now(), request=request)
    _write(state, record)
    for number in numbers[: -KEPT_RECORDS + 1]:
        with suppress(OSError):  # an old record more does no harm
            os.unlink(_path(state, number))
    return record


def finish(state: State, record: Record) -> Record:
    """Record that a run ended, with what it did.

    Not where the records were cleared away since it began: who was asked after that does not know
    this run's number, and would take it for a later one.
    """
    record = record._replace(finished=_now())
    if os.path.lexists(_path(state, record.number)):
        _write(state, record)
    return record


def covering(state: State, request: Request, asked_after: int) -> Record | None:
    """Return a finished run that began after run `asked_after` and did what `request` asks.

    The number of the newest run is read before this run is asked for anything; a run with a higher
    number began later, so its scan has seen everything that was there when we were asked.
    """
    for record in newest_first(state):
        if record.number <= asked_after:
            return None
        if record.finished and record.request.covers(request):
            return record
    return None


def newest_first(state: State) -> Iterator[Record]:
    """Yield the records that can be read, the newest first."""
    try:
        numbers = sorted(_numbers(state), reverse=True)
    except OSError:
        return
    for number in numbers:
        record = _read(state, number)
        if record:
            yield record


def _numbers(state: State) -> list[int]:
    try:
        names = os.listdir(state.runs)
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = [name[:-5] for name in names if name.endswith(".json") and len(name) < LONGEST_NAME]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return [number for number in numbers if f"{number}.json" in names]


def _path(state: State, number: int) -> str:
    return f"{state.runs}/{number}.json"


def _write(state: State, record: Record) -> None:
    only = record.request.only
    request = {**record.request._asdict(), "only": None if only is None else sorted(only)}
    fields = {**record._asdict(), "request": request}
    import json

    state.write(_path(state, record.number), json.dumps(fields, indent=1).encode("ascii"))


def _read(state: State, number: int) -> Record | None:
    """Return a record, or None for one that is damaged or vanished: that costs time, no more."""
    import json  # 4 ms that a run with nothing to do need not spend

    try:
        with open(_path(state, number), "rb") as file:
            fields = json.loads(file.read())
        request = fields.pop("request")
        only = request.pop("only")
        return Record(
            request=Request(
                options=str(request.pop("options")),
                below=str(request.pop("below")),
                only=None if only is None else frozenset(map(str, only)),
            ),
            failed=_pairs(fields.pop("failed")),
            overlaps=_pairs(fields.pop("overlaps")),
            number=number,
            began=str(fields.pop("began")),
            finished=None if fields["finished"] is None else str(fields["finished"]),
            engine=str(fields.pop("engine")),
            moved=int(fields.pop("moved")),
            bytes_written=int(fields.pop("bytes_written")),
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _pairs(found: Iterable[tuple[object, object]]) -> tuple[tuple[str, str], ...]:
    return tuple((str(one), str(other)) for one, other in found)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
