"""Make a tree of DLLs fork-safe: move those that overlap or lie where others may come to lie.

The tree is ROOT, or the folder that the environment variable SAGE_LOCAL names. Nothing to do costs
next to nothing and waits for nobody; otherwise the tree's lock is taken, the images that must move
are moved on copies, and each checked copy takes its original's place.

exit status:
  0    no overlap is left and nothing failed
  1    an overlap is left or something failed; each image is named, with its reason
  2    usage
  75   the lock was not had in the time allowed
  130  interrupted; every file is whole, old or new
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from cygwin.address_space import machine_name
from rebaser.cli import complain
from rebaser.commands.shared import (
    SHOWN,
    add_place_arguments,
    add_reserved_arguments,
    add_scan_arguments,
    options_from,
    print_lines,
    with_settings,
)
from rebaser.options import ENGINES, first_not_there, named_paths, read_only_from
from rebaser.progress import make_progress
from rebaser.report import Report
from rebaser.run import run
from rebaser.state.folder import State
from rebaser.text import address, byte_count, plural, printable
from rebaser.tree import find_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.plan.placement import Move
    from rebaser.scan.skip import Skipped


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser run`."""
    parser.add_argument("root", metavar="ROOT", nargs="?", help="the tree (default: $SAGE_LOCAL)")
    add_place_arguments(parser)
    add_scan_arguments(parser)
    add_reserved_arguments(parser)
    what = parser.add_argument_group("what moves")
    what.add_argument(
        "--only-from",
        metavar="FILE",
        help="only the images named in FILE may move (- is standard input): one path a line, "
        "relative to ROOT",
    )
    what.add_argument("-0", dest="nul", action="store_true", help="paths in FILE end in NUL")
    what.add_argument(
        "--arena", metavar="LOW-HIGH", help="move images to these addresses instead of the usual"
    )
    what.add_argument(
        "--keep-aslr", action="store_true", help="leave DYNAMIC_BASE set where it is set"
    )
    what.add_argument(
        "--force-signed",
        action="store_true",
        help="move images that have an Authenticode signature, which breaks it",
    )
    what.add_argument(
        "--touch", action="store_true", help="give moved files a new modification time"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="who relocates: Cygwin's programs rebase and peflags, or rebaser itself; auto takes "
        "Cygwin's where this is Cygwin or MSYS2 and they are found (default: auto)",
    )
    how.add_argument(
        "--dry-run", action="store_true", help="print the plan; change nothing, take no lock"
    )
    how.add_argument(
        "--strict",
        action="store_true",
        help="end with status 1 also for overlaps that no run cures, of signed DLLs for example",
    )
    how.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, help="how long the lock may take (default: any)"
    )
    how.add_argument(
        "--no-wait",
        dest="wait",
        action="store_const",
        const=0.0,
        help="end with status 75 if the lock is held",
    )
    how.add_argument(
        "--coordinator",
        metavar="URL",
        help="a server that keeps the lock for all machines that install into this tree: "
        "redis://, etcd3+http(s):// or postgresql:// (needs the extra rebaser[cluster])",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    loud = output.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print only what went wrong")
    loud.add_argument("--verbose", action="store_true", help="print every image that moved")
    output.add_argument(
        "--progress",
        choices=("auto", "always", "never"),
        default="auto",
        help="show progress on stderr: a bar on a terminal, lines in a log (default: auto)",
    )


def main(arguments: Namespace) -> int:
    """Run, print the result, and return the exit status."""
    tree = find_tree(arguments.root, lock_file=arguments.lock_file, state_dir=arguments.state_dir)
    arguments = with_settings(arguments, tree)
    only = None
    if arguments.only_from is not None:
        listed = read_only_from(arguments.only_from)
        only = named_paths(listed, tree.root, tree.scope, nul=arguments.nul)
        if stranger := first_not_there(listed, only, tree.root):
            complain(
                f"none of the names given to --only-from is there, such as {stranger}: they are "
                f"relative to {tree.path(tree.scope)}"
            )
    options = options_from(arguments)
    is_first = not os.path.lexists(State(tree.state_dir, tree.root).snapshot_file)
    report = run(
        tree,
        options,
        only=only,
        wait=arguments.wait,
        dry_run=arguments.dry_run,
        strict=arguments.strict,
        coordinator=arguments.coordinator,
        progress=make_progress(arguments.progress, arguments.quiet or arguments.json),
    )
    report = report._replace(settings=arguments.settings)
    report = report._replace(skipped=_of_concern(report, tree.scope, only))
    if arguments.json:
        print_json(report)
    elif not arguments.quiet:
        print_report(report, tree.scope, verbose=arguments.verbose, is_first=is_first)
    elif report.exit_status:
        print_trouble(report)
    return report.exit_status


def _of_concern(report: Report, scope: str, only: frozenset[str] | None) -> tuple[Skipped, ...]:
    """Return what was skipped of the files that were asked for, or overlaps one of them."""
    overlapping = {path for group in report.overlaps for path in group.paths}
    return tuple(
        one
        for one in report.skipped
        if one.path in overlapping
        or (one.path.startswith(scope) and (only is None or one.path in only))
    )


def print_json(report: Report) -> None:
    """Print the report as one JSON object."""
    import json

    pairs: dict[str, object] = {
        "skipped": [{"path": one.path, "reason": one.reason} for one in report.skipped],
        "failed": [{"path": path, "reason": reason} for path, reason in report.failed],
        "unfinished": list(report.unfinished),
        "overlaps": [
            {
                "low": address(group.low),
                "high": address(group.high),
                "paths": list(group.paths),
                "cure": group.cure,
            }
            for group in report.overlaps
        ],
    }
    seconds = {name: round(value, 6) for name, value in report.seconds._asdict().items()}
    print(
        json.dumps(
            {
                "format": 1,
                "root": report.root,
                "engine": report.engine,
                "engine_version": report.engine_version,
                "run": report.run,
                "covered_by": report.covered_by,
                "dry_run": report.planned,
                "scanned": report.scanned,
                "images": report.images,
                "kept": report.kept,
                "moved": [
                    {
                        "path": move.path,
                        "machine": machine_name(move.machine),
                        "old_base": address(move.old_base),
                        "new_base": address(move.new_base),
                        "slot_size": move.slot_size,
                        "reason": move.reason,
                    }
                    for move in report.moved
                ],
                **pairs,
                "others": report.others,
                "settings": report.settings,
                "bytes_written": report.bytes_written,
                "seconds": seconds,
            }
        )
    )


def print_report(report: Report, scope: str = "", *, verbose: bool, is_first: bool = True) -> None:
    """Print what a person wants to know of a run.

    What is skipped run after run is listed once, and then where something was to be done.
    """
    shown = sys.maxsize if verbose else SHOWN
    if report.planned:
        print_lines(_table(report), shown + 1)
    else:
        print_lines([_moved(move) for move in report.moved], shown)
    had_work = report.moved or report.run is not None or report.exit_status
    lists_skipped = bool(verbose or is_first or had_work)
    if lists_skipped:
        print_lines([f"skipped {one.path}: {one.reason}" for one in report.skipped], shown)
    print(printable(summary(report, scope, verbose=verbose, lists_skipped=lists_skipped)))
    print_trouble(report)


def _moved(move: Move) -> str:
    if move.new_base == move.old_base:
        return f"cleared DYNAMIC_BASE of {move.path}"
    bases = f"{address(move.old_base)} -> {address(move.new_base)}"
    return f"moved {move.path}: {bases} ({move.reason})"


def _table(report: Report) -> list[str]:
    """Return the plan as lines, the first its heading; sizes are those of the slots, in bytes."""
    if not report.moved:
        return []
    rows = [("old base", "new base", "size", "path", "reason")]
    rows += [
        (
            address(move.old_base),
            address(move.new_base),
            address(move.slot_size),
            printable(move.path),
            printable(move.reason),
        )
        for move in report.moved
    ]
    old, new, size, path = (max(len(row[column]) for row in rows) for column in range(4))
    return [
        f"{row[0]:>{old}}  {row[1]:>{new}}  {row[2]:>{size}}  {row[3]:<{path}}  {row[4]}"
        for row in rows
    ]


def print_trouble(report: Report) -> None:
    """Print what is left to be done by somebody, on stderr."""
    shown = sys.maxsize
    print_lines([f"failed {path}: {reason}" for path, reason in report.failed], shown, sys.stderr)
    if report.overlaps:
        print_lines(
            [f"overlap left: {' and '.join(group.paths)}" for group in report.overlaps],
            SHOWN,
            sys.stderr,
        )


def summary(report: Report, scope: str = "", *, verbose: bool, lists_skipped: bool = True) -> str:
    """Return the result of a run as one line."""
    done = _done(report)
    left = []
    if report.skipped:
        hint = "" if lists_skipped else " (--verbose says why)"
        left.append(f"{len(report.skipped):,} skipped{hint}")
    if report.failed:
        left.append(f"{len(report.failed):,} failed")
    if report.overlaps:
        left.append(f"{plural(len(report.overlaps), 'overlap')} left")
    elif report.covered_by is None and report.moved and not report.planned:
        left.append("no overlap is left")
    if report.run is not None:
        left.append(f"run {report.run}")
    if verbose:
        version = f" ({report.engine_version})" if report.engine_version else ""
        left.append(f"engine {report.engine}{version}")
    where = report.root
    if scope:
        where = f"{report.root.rstrip('/')}/{scope.rstrip('/')} as part of the tree {report.root}"
    return "; ".join([f"{where}: {done}", *left])


def _done(report: Report) -> str:
    images = plural(report.images, "image")
    if report.covered_by is not None:
        return f"covered by run {report.covered_by}, which began after this one was asked for"
    if not report.moved:
        if report.run is None and not report.exit_status:
            return f"{images}, nothing to do"
        return f"{images}, nothing {'would be' if report.planned else 'was'} moved"
    move, clear = ("would move", "would clear") if report.planned else ("moved", "cleared")
    relocated = sum(one.old_base != one.new_base for one in report.moved)
    flags = len(report.moved) - relocated
    done = f"{move} {relocated:,} of {images}"
    if not relocated:
        done = f"{clear} DYNAMIC_BASE of {flags:,} of {images}"
    elif flags:
        done += f", {clear} DYNAMIC_BASE of {flags:,} more"
    if report.planned:
        return done
    return f"{done} ({byte_count(report.bytes_written)} written, {report.seconds.total:.2f} s)"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        raise ArgumentTypeError(f"{text!r} is no number of seconds: 0 or more")
    return value
