"""The records of the runs: their numbers, what they were asked for, how they ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence

from cygwin.values import NamedTuple
from rebaser.errors import suppress
from rebaser.files import names_in
from rebaser.options import Request
from rebaser.report import Group, Report
from rebaser.scan import RUNS
from rebaser.state.folder import State, StateError
from rebaser.text import from_utf8, recoded, to_utf8

KEPT_RECORDS = 30

# A record of more names would take longer to write than their DLLs to look at: such a run covers
# nobody else's.
MOST_NAMES = 10_000

# No tree sees so many runs; a made-up name must not make the next number as long.
LONGEST_NAME = len("999999999.json")

# A record of a hundred thousand named files has 6 MB.
LARGEST_RECORD = 256 << 20


class Record(NamedTuple):
    """One run. What is named as in its report, `failed` and the like, is what was left.

    Its scan began when the clock of the machine `host` (time.monotonic) showed `looked`.
    """

    number: int
    began: str
    request: Request
    host: str
    looked: float
    finished: str | None = None
    engine: str | None = None
    moved: int = 0
    bytes_written: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    unfinished: tuple[str, ...] = ()
    overlaps: tuple[Group, ...] = ()
    others: int = 0


def newest_number(state: State) -> int:
    """Return the number of the newest run that began, 0 where there is none.

    Where that cannot be read it is a number that no run has: then no run covers another.
    """
    try:
        return max(_numbers(state), default=0)
    except OSError:
        return sys.maxsize


def begin(state: State, request: Request, looked: float) -> Record:
    """Record that a run begins, whose scan began at `looked`. Needs the exclusive lock."""
    try:
        numbers = sorted(_numbers(state))
    except OSError as error:
        raise StateError(
            f"{state.runs} cannot be read ({error.strerror}); nothing was changed. "
            "Make it readable, or remove it: the records of past runs are lost, no more"
        ) from error
    number = max(numbers, default=0) + 1
    if len(request.only or ()) > MOST_NAMES:
        request = request._replace(only=frozenset())
    record = Record(number, _now(), request, host=os.uname().nodename, looked=looked)
    _write(state, record)
    for number in numbers[: -KEPT_RECORDS + 1]:
        with suppress(OSError):  # an old record more does no harm
            if _read(state, number):  # and what is none is not ours
                os.unlink(f"{number}.json", dir_fd=state.open(RUNS))
    return record


def finish(state: State, record: Record, report: Report) -> None:
    """Record that a run ended, with what it did.

    Not where the records were cleared away since it began: who was asked after that does not know
    this run's number, and would take it for a later one.
    """
    if _read(state, record.number):
        told = {name: told for name, told in report._asdict().items() if name in Record._fields}
        told.update(moved=len(report.moved), finished=_now())
        _write(state, record._replace(**told))


class Asked(NamedTuple):
    """When a run was asked for: the number of the newest run then, and this machine's clock."""

    newest: int
    clock: float


def covering(state: State, request: Request, asked: Asked) -> Record | None:
    """Return a finished run whose scan began after `asked` and that did what `request` asks.

    A run with a higher number than the newest at that time wrote its record since then, so its
    clock is ours, unless it ran elsewhere. Where it left something to do it says so only for what
    it was asked for itself.
    """
    for record in newest_first(state, asked.newest):
        ours = record.host == os.uname().nodename and record.looked > asked.clock
        told = record.request == request or not any(group.cure for group in record.overlaps)
        if record.finished and ours and told and record.request.covers(request):
            return record
    return None


def newest_first(state: State, after: int = 0) -> Iterator[Record]:
    """Yield the records that can be read of runs after number `after`, the newest first."""
    with suppress(OSError):
        numbers = sorted(_numbers(state), reverse=True)
        yield from filter(None, (_read(state, number) for number in numbers if number > after))


def _numbers(state: State) -> list[int]:
    try:
        names = names_in(state.open(RUNS))
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = [name[:-5] for name in names if name.endswith(".json") and len(name) < LONGEST_NAME]
    return [int(stem) for stem in stems if stem.isdecimal() and str(int(stem)) == stem]


def _write(state: State, record: Record) -> None:
    import json

    request = record.request
    only = None if request.only is None else sorted(request.only)
    fields = {
        **record._asdict(),
        "request": {**request._asdict(), "only": only},
        "overlaps": [group._asdict() for group in record.overlaps],
    }
    # Names are the file system's bytes, whatever letters this user's locale makes of them.
    text = json.dumps(recoded(fields, to_utf8), indent=1)
    state.write(f"{RUNS}/{record.number}.json", text.encode("ascii"))


def _read(state: State, number: int) -> Record | None:
    """Return a record, or None for one that is damaged or vanished: that costs time, no more."""
    import json  # 4 ms that a run with nothing to do need not spend

    try:
        data, _ = state.read(f"{RUNS}/{number}.json", LARGEST_RECORD)
        fields = recoded(json.loads(data), from_utf8)
        only = fields["request"].pop("only")
        return Record(
            number=number,
            began=str(fields["began"]),
            request=Request(
                **{name: str(text) for name, text in fields["request"].items()},
                only=None if only is None else frozenset(map(str, only)),
            ),
            host=str(fields["host"]),
            looked=float(fields["looked"]),
            finished=fields["finished"] and str(fields["finished"]),
            engine=fields["engine"] and str(fields["engine"]),
            moved=_count(fields["moved"]),
            bytes_written=_count(fields["bytes_written"]),
            failed=tuple((str(path), str(reason)) for path, reason in fields["failed"]),
            unfinished=tuple(map(str, fields["unfinished"])),
            overlaps=tuple(_group(**each) for each in fields["overlaps"]),
            others=_count(fields["others"]),
        )
    except Exception:  # whatever nonsense makes of it, be it of 1e999 or a thousand brackets
        return None


def _count(number: float) -> int:
    if not 0 <= number < 1 << 65:  # a damaged image may end behind the last address
        raise ValueError(number)
    return int(number)


def _group(
    machine: int, low: int, high: int, paths: Sequence[str], cure: str | None, ours: bool
) -> Group:
    addresses = _count(machine), _count(low), _count(high)
    return Group(*addresses, tuple(map(str, paths)), cure and str(cure), bool(ours))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
