"""Tell how a tree stands: its DLLs, the room that is left, who holds its lock, and its last runs.

Reads only, takes no lock. A folder inside a tree is reported with the whole tree.

exit status:
  0    the tree was looked at, whatever its state
  1    something could not be looked at
  2    usage
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from locks.holders import Holder, describe_holders, holders
from rebaser.commands import Arguments
from rebaser.commands.map import Look, add_look_options
from rebaser.errors import suppress
from rebaser.state.records import Record, newest_first
from rebaser.text import address, byte_count, plural, printable
from rebaser.tree import Tree
from rebaser.view import room, summary

# The last runs that are printed.
LAST_RUNS = 10

add_arguments = add_look_options


def main(arguments: Arguments) -> int:
    found = Look(arguments)
    tree, settings = found.tree, found.settings
    records = list(newest_first(tree.state))
    others = holders(tree.lock_file)
    free = _is_free(tree.lock_file, others)
    if arguments.json:
        untold = ("request", "host", "looked", "others")  # for other runs alone
        found.print_json(
            lambda one: {"images": len(one.images), "overlapping": one.colliding},
            skipped=found.skipped,
            lock={"path": tree.lock_file, "free": free, "open_in": others},
            state=tree.state_dir,
            settings=settings,
            runs=[
                {name: value for name, value in one._asdict().items() if name not in untold}
                for one in records
            ],
        )
    else:
        how = "free" if free else describe_holders(tree.lock_file)
        if free is None and not others:
            how = "cannot be looked at"
        lines = [tree.root, *_of_dlls(found), f"lock: {how} ({tree.lock_file})"]
        lines.append(f"state: {tree.state_dir}")
        lines += [f"settings: {settings} was read"] if settings else []
        works = any(holder.mode == "exclusive" for holder in others)
        for line in (*lines, *_of_runs(tree, records, works)):
            print(printable(line))
    return found.end()


def _of_dlls(found: Look) -> Iterator[str]:
    for one in found.maps:
        hint = " ('rebaser check' says what helps)" if one.colliding else ""
        yield f"{summary(one)}{hint}"
        yield f"  address range {address(one.arena.low)}-{address(one.arena.high)}"
        for text in room(one.use()):
            yield f"    {text}"
    if found.skipped:
        count = plural(len(found.skipped), "file")
        yield f"skipped: {count} ('rebaser run --verbose' says why)"


def _of_runs(tree: Tree, records: Sequence[Record], works: bool) -> Iterator[str]:
    if records:
        yield "runs:" if len(records) <= LAST_RUNS else f"runs (the last {LAST_RUNS}):"
        for number, record in enumerate(records[:LAST_RUNS]):
            yield f"  {_run(record, works and not number)}"
        return
    why = "none that had work to do"
    try:
        os.listdir(tree.state.runs)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        why = f"cannot be looked at ({error.strerror})"
    yield f"runs: {why}"


def _is_free(path: str, others: Sequence[Holder]) -> bool | None:
    """Return whether nobody holds the lock; None where that cannot be told."""
    try:
        inode = os.stat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return None
    if sys.platform != "linux":  # only who has it open is known there
        return None if others else True
    # Other users' processes cannot be looked into, but their locks are listed (proc(5)).
    with suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as file:
        if any(" FLOCK " in line and f":{inode} " in line for line in file):
            return False
    return not any(holder.mode for holder in others)


def _run(record: Record, at_work: bool) -> str:
    asked = ""
    if record.request.only is not None:
        asked = f" for {plural(len(record.request.only), 'named file')}"
    elif record.request.below:
        asked = f" for {record.request.below}"
    if record.finished is None:
        how = "at work" if at_work else "did not finish; the next run completes its work"
        return f"{record.number}  {record.began}{asked}  {how}"
    left = [f"{len(record.failed):,} failed"] if record.failed else []
    left += [f"{len(record.unfinished):,} changed meanwhile"] if record.unfinished else []
    if record.overlaps:
        left.append(f"{plural(sum(len(g.paths) for g in record.overlaps), 'DLL')} still overlap")
    left = left or ["no overlap left" if record.request.is_for_all else "none of these overlaps"]
    moved = f"moved {plural(record.moved, 'DLL')} ({byte_count(record.bytes_written)})"
    return f"{record.number}  {record.began}{asked}  {moved}, {', '.join(left)}"
