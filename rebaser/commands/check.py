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

from rebaser.check import Findings, Problem, check
from rebaser.commands.shared import SHOWN, add_reserved_arguments, add_scan_arguments, print_lines
from rebaser.errors import UsageError
from rebaser.plan.overlap import Span
from rebaser.scan.walk import Rules
from rebaser.text import address, plural, printable


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser check`."""
    parser.intermixed = True  # type: ignore[attr-defined]  # cli.Parser's
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
        rules=Rules(tuple(arguments.suffix)),
        excludes=tuple(arguments.exclude),
        database=arguments.database,
        cygwin_root=arguments.cygwin_root,
        avoid=arguments.avoid,
        warn=lambda text: print(f"rebaser: {printable(text)}", file=sys.stderr),
    )
    if arguments.json:
        print_findings_as_json(findings)
    else:
        print_findings(findings, _options(arguments), verbose=arguments.verbose)
    return findings.exit_status


def _options(arguments: Namespace) -> list[str]:
    """Return the options that a run must repeat to do what was checked."""
    given = {
        "suffix": arguments.suffix,
        "exclude": arguments.exclude,
        "avoid": arguments.avoid,
        "database": [arguments.database] if arguments.database else [],
        "cygwin-root": [arguments.cygwin_root] if arguments.cygwin_root else [],
    }
    return [f"--{name}={value}" for name, values in given.items() for value in values]


def print_findings_as_json(findings: Findings) -> None:
    """Print the findings as one JSON object."""
    from rebaser.commands.json_output import group_object, move_objects, print_json, reason_objects

    def problems(some: Sequence[Problem]) -> list[dict[str, str]]:
        return [{"path": problem.path, "problem": problem.what} for problem in some]

    groups = []
    for group in findings.groups:
        paths = [span.path for span in group]
        cure = "run" if any(path in findings.moves for path in paths) else None
        high = max(span.high for span in group)
        groups.append(group_object(group[0].low, high, paths, cure))
    print_json(
        {
            "images": findings.images,
            "breaks_fork": findings.breaks_fork,
            "overlaps": groups,
            "problems": problems(findings.problems),
            "incurable": problems(findings.incurable),
            "failed": reason_objects(findings.unread),
            "skipped": reason_objects((one.path, one.reason) for one in findings.skipped),
            "at_linkers_base": findings.at_linkers_base,
            "would_move": move_objects(findings.moves.values()),
        }
    )


def print_findings(findings: Findings, options: Sequence[str], *, verbose: bool) -> None:
    """Print what breaks fork, what would cure it, and what would not."""
    shown = sys.maxsize if verbose else SHOWN
    reasons = {one.path: one.reason for one in findings.skipped}
    for group in findings.groups:
        low, high = min(span.low for span in group), max(span.high for span in group)
        print(f"{len(group):,} images overlap within {address(low)}-{address(high)}:")
        print_lines([f"  {_placed(span, findings, reasons)}" for span in group], shown)
    print_lines(_by_path(findings.problems), shown)
    if findings.incurable:
        print("No rebase cures these:")
        print_lines([f"  {line}" for line in _by_path(findings.incurable)], shown)
    if findings.unread:
        print("These could not be looked at:")
        print_lines([f"  {path}: {reason}" for path, reason in findings.unread], shown)
    if verbose:
        print_lines([f"no run moves {path}: {why}" for path, why in reasons.items()], shown)
    if count := findings.at_linkers_base:
        print(f"{plural(count, 'DLL')} {_is(count)} still where the linker put {_them(count)}")
    print(printable(_verdict(findings)))
    if findings.moves:
        print(printable(f"What a rebase cures, this does: {_cure(findings, options)}"))


def _by_path(problems: Sequence[Problem]) -> list[str]:
    return [
        f"{path}: {'; '.join(problem.what for problem in of_path)}"
        for path, of_path in groupby(problems, lambda problem: problem.path)
    ]


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _placed(span: Span, findings: Findings, reasons: Mapping[str, str]) -> str:
    where = f"{address(span.low)}-{address(span.high)} {span.path}"
    move = findings.moves.get(span.path)
    if move and move.new_base != move.old_base:
        return f"{where} (rebaser run would move it to {address(move.new_base)})"
    if span.path in reasons:
        return f"{where} (no run moves it: {reasons[span.path]})"
    if span.path in findings.outside:
        return f"{where} (outside of what was named)"
    return f"{where} (it would stay)" if findings.runs else where


def _verdict(findings: Findings) -> str:
    looked_at = plural(findings.images, "DLL")
    unread = f"{len(findings.unread):,} could not be looked at"
    if not findings.breaks_fork:
        verdict = f"{looked_at}: nothing here breaks fork"
        return (
            f"{verdict}, as far as it could be looked at; {unread}" if findings.unread else verdict
        )
    counts = {
        "overlapping": sum(map(len, findings.groups)),
        "with a problem of its own": len({problem.path for problem in findings.problems}),
        "that no rebase cures": len({problem.path for problem in findings.incurable}),
    }
    found = [f"{count:,} {what}" for what, count in counts.items() if count]
    verdict = f"{looked_at}: {', '.join(found)}; this breaks fork"
    return f"{verdict}. {unread}" if findings.unread else verdict


def _cure(findings: Findings, options: Sequence[str]) -> str:
    """Return the commands that do what `moves` says, for a shell."""
    return "; ".join(
        shlex.join(
            ["rebaser", "run", run.folder, *options, *(f"--avoid={path}" for path in run.avoid)]
        )
        for run in findings.runs
    )
