"""Say what breaks fork in files, and in the images below folders; change nothing, take no lock.

Without PATH the folder that the environment variable SAGE_LOCAL names is looked at.

exit status:
  0    nothing breaks fork
  1    something does, or a file could not be looked at
  2    usage
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from itertools import groupby

from cygwin.address_space import machine_name
from rebaser.checker import Findings, Problem, check
from rebaser.commands.run import SHOWN, add_reserved_arguments, add_scan_arguments, print_lines
from rebaser.errors import UsageError
from rebaser.overlap import Span
from rebaser.planner import Move
from rebaser.scanner import Rules
from rebaser.text import address, plural, printable


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser check`."""
    parser.add_argument(
        "paths", metavar="PATH", nargs="*", help="files and folders (default: $SAGE_LOCAL)"
    )
    add_scan_arguments(parser)
    add_reserved_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--verbose", action="store_true", help="print every line there is")


def main(arguments: Namespace) -> int:
    """Check, print what was found, and return the exit status."""
    paths = arguments.paths or [path for path in [os.environ.get("SAGE_LOCAL")] if path]
    if not paths:
        raise UsageError("nothing is named: give PATH, or set the environment variable SAGE_LOCAL")
    findings = check(
        paths,
        rules=Rules(tuple(arguments.suffix), tuple(arguments.exclude)),
        database=arguments.database,
        cygwin_root=arguments.cygwin_root,
        avoid=arguments.avoid,
        warn=lambda text: print(f"rebaser: {printable(text)}", file=sys.stderr),
    )
    if arguments.json:
        print_json(findings)
    else:
        print_findings(findings, paths, sys.maxsize if arguments.verbose else SHOWN)
    return int(findings.breaks_fork)


def print_json(findings: Findings) -> None:
    """Print the findings as one JSON object."""
    import json

    def problems(some: Sequence[Problem]) -> list[dict[str, str]]:
        return [{"path": problem.path, "problem": problem.what} for problem in some]

    def reasons(some: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"path": path, "reason": reason} for path, reason in some]

    print(
        json.dumps(
            {
                "images": findings.images,
                "breaks_fork": findings.breaks_fork,
                "overlaps": [list(pair) for pair in findings.pairs],
                "problems": problems(findings.problems),
                "incurable": problems(findings.incurable),
                "failed": reasons(findings.unread),
                "skipped": reasons(findings.skipped),
                "at_linkers_base": findings.at_linkers_base,
                "would_move": [
                    {
                        "path": move.path,
                        "machine": machine_name(move.machine),
                        "old_base": address(move.old_base),
                        "new_base": address(move.new_base),
                    }
                    for move in findings.moves.values()
                ],
            }
        )
    )


def print_findings(findings: Findings, paths: Sequence[str], shown: int) -> None:
    """Print what breaks fork, what would cure it, and what would not."""
    for group in findings.groups:
        low, high = min(span.low for span in group), max(span.high for span in group)
        print(f"{len(group):,} images overlap within {address(low)}-{address(high)}:")
        print_lines([f"  {_placed(span, findings.moves)}" for span in group], shown)
    print_lines(
        [
            f"{path}: {'; '.join(problem.what for problem in problems)}"
            for path, problems in groupby(findings.problems, lambda problem: problem.path)
        ],
        shown,
    )
    print_lines([f"not checked {path}: {reason}" for path, reason in findings.unread], shown)
    if findings.incurable:
        print("No rebase cures these:")
        print_lines([f"  {problem.path}: {problem.what}" for problem in findings.incurable], shown)
    if count := findings.at_linkers_base:
        print(f"{plural(count, 'DLL')} {_is(count)} still where the linker put {_them(count)}")
    print(printable(_verdict(findings, paths)))


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _placed(span: Span, moves: Mapping[str, Move]) -> str:
    move = moves.get(span.path)
    where = f"{address(span.low)}-{address(span.high)} {span.path}"
    if move and move.new_base != move.old_base:
        return f"{where} (rebaser run would move it to {address(move.new_base)})"
    return f"{where} (it would stay)"


def _verdict(findings: Findings, paths: Sequence[str]) -> str:
    looked_at = plural(findings.images, "DLL")
    if not findings.breaks_fork:
        return f"{looked_at}: nothing here breaks fork"
    counts = {
        "overlapping": sum(map(len, findings.groups)),
        "with a problem of its own": len({problem.path for problem in findings.problems}),
        "not looked at": len(findings.unread),
        "that no rebase cures": len(findings.incurable),
    }
    found = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    verdict = f"{looked_at}: {found}; this breaks fork."
    folders = [path for path in paths if os.path.isdir(path)]
    if findings.moves and folders:
        commands = "; ".join(f"rebaser run {shlex.quote(path)}" for path in folders)
        verdict += f" What a rebase cures, this does: {commands}"
    return verdict
