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
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from cygwin.address_space import machine_name
from locks.holders import Holder, describe_holders, holders
from rebaser.address_map import AddressMap, binary_size, use_of
from rebaser.commands.map import add_look_arguments, look_as_asked
from rebaser.commands.shared import SHOWN, arena_object, print_lines
from rebaser.look import Look
from rebaser.state.folder import State
from rebaser.state.records import Record, newest_first
from rebaser.text import address, byte_count, plural, printable
from rebaser.tree import Tree

# The last runs that are printed.
LAST_RUNS = 10


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser status`."""
    parser.add_argument("root", metavar="ROOT", nargs="?", help="the tree (default: $SAGE_LOCAL)")
    add_look_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments: Namespace) -> int:
    """Look, print, and return the exit status."""
    tree, found = look_as_asked(arguments)
    records = list(newest_first(State(tree.state_dir, tree.root)))
    others = holders(tree.lock_file)
    if arguments.json:
        _print_json(tree, found, records, others)
    else:
        _print(tree, found, records, others)
    print_lines([f"{path}: {reason}" for path, reason in found.failed], SHOWN, sys.stderr)
    return int(bool(found.failed))


def _print(tree: Tree, found: Look, records: Sequence[Record], others: Sequence[Holder]) -> None:
    print(printable(tree.root))
    for one in found.maps:
        print_lines(_machine(one), sys.maxsize)
    if found.skipped:
        print(f"skipped: {plural(len(found.skipped), 'file')} ('rebaser run --verbose' says why)")
    print(printable(f"lock: {tree.lock_file}: {_lock(tree.lock_file, others)}"))
    print(printable(f"state: {tree.state_dir}"))
    if not records:
        print(f"runs: {_no_runs(State(tree.state_dir, tree.root).runs)}")
        return
    print("runs:" if len(records) <= LAST_RUNS else f"runs (the last {LAST_RUNS}):")
    for number, record in enumerate(records[:LAST_RUNS]):
        newest_works = number == 0 and any(holder.mode == "exclusive" for holder in others)
        print(printable(f"  {_run(record, at_work=newest_works)}"))


def _machine(found: AddressMap) -> list[str]:
    use = use_of(found)
    overlap = (
        f"{found.colliding:,} overlapping ('rebaser map' shows where, 'rebaser run' moves them)"
        if found.colliding
        else "no overlap"
    )
    kept = f", {binary_size(use.others)} kept for others" if use.others else ""
    gap = use.largest_gap
    largest = f", largest gap {binary_size(gap.high - gap.low)}" if gap else ""
    return [
        f"{machine_name(found.machine)}: {plural(len(found.images), 'DLL')}, {overlap}",
        f"  arena {address(found.arena.low)}-{address(found.arena.high)}: "
        f"{binary_size(use.images)} used{kept}, {binary_size(use.free)} free{largest}",
    ]


def _lock(path: str, others: Sequence[Holder]) -> str:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "not made yet"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if any(holder.mode for holder in others) or (others and sys.platform != "linux"):
        return describe_holders(path)
    return "nobody else who can be seen from here holds it"


def _no_runs(folder: str) -> str:
    """Return why no run is listed."""
    try:
        os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    return "none that had work to do"


def _run(record: Record, *, at_work: bool) -> str:
    asked = ""
    if record.request.only is not None:
        asked = f" for {plural(len(record.request.only), 'named file')}"
    elif record.request.below:
        asked = f" for {record.request.below}"
    if record.finished is None:
        how = "at work" if at_work else "did not finish; the next run completes its work"
        return f"{record.number}  {record.began}{asked}  {how}"
    left = []
    if record.failed:
        left.append(f"{len(record.failed):,} failed")
    if record.overlaps:
        left.append(f"{plural(len(record.overlaps), 'overlap')} left")
    ended = ", ".join(left) or "no overlap left"
    return (
        f"{record.number}  {record.began}{asked}  moved {record.moved:,} "
        f"({byte_count(record.bytes_written)}), {ended}"
    )


def _print_json(
    tree: Tree, found: Look, records: Sequence[Record], others: Sequence[Holder]
) -> None:
    import json

    machines = {}
    for one in found.maps:
        machines[machine_name(one.machine)] = {
            "images": len(one.images),
            "overlapping": one.colliding,
            **arena_object(one),
        }
    print(
        json.dumps(
            {
                "root": tree.root,
                "machines": machines,
                "skipped": [{"path": p, "reason": r} for p, r in found.skipped],
                "failed": [{"path": p, "reason": r} for p, r in found.failed],
                "lock": {
                    "path": tree.lock_file,
                    "open_in": [
                        {"pid": h.pid, "command": h.command, "mode": h.mode, "waiting": h.waiting}
                        for h in others
                    ],
                },
                "state": tree.state_dir,
                "runs": [
                    {
                        "number": record.number,
                        "began": record.began,
                        "finished": record.finished,
                        "engine": record.engine,
                        "moved": record.moved,
                        "bytes_written": record.bytes_written,
                        "failed": [{"path": p, "reason": r} for p, r in record.failed],
                        "overlaps": [list(group.paths) for group in record.overlaps],
                    }
                    for record in records
                ],
            }
        )
    )
