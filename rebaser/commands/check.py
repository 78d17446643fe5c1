"""Say what breaks fork in files, and in the DLLs below folders; change nothing, take no lock.

Without PATH the folder that the environment variable SAGE_LOCAL names is looked at.

exit status:
  0    nothing breaks fork
  1    something does, or a file could not be judged
  2    usage
"""

from __future__ import annotations

import os
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

from rebaser.check import LOADED_ANYWHERE, Findings, Problem, check
from rebaser.commands.shared import (
    add_place_arguments,
    add_plan_arguments,
    add_reserved_arguments,
    add_scan_arguments,
    options_from,
    with_settings,
)
from rebaser.commands.verdict import (
    GREEN,
    RED,
    YELLOW,
    Verdict,
    by_reason,
    dlls,
    lines_of,
    show,
    where_they_lay,
)
from rebaser.errors import UsageError
from rebaser.progress import make_progress
from rebaser.text import address, names, plural
from rebaser.tree import find_tree


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser check`."""
    parser.intermixed = True  # type: ignore[attr-defined]  # cli.Parser's
    parser.add_argument(
        "paths", metavar="PATH", nargs="*", help="files and folders (default: $SAGE_LOCAL)"
    )
    for add in (add_scan_arguments, add_reserved_arguments, add_plan_arguments):
        add(parser)
    add_place_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    loud = output.add_mutually_exclusive_group()
    loud.add_argument("-q", "--quiet", action="store_true", help="print nothing: see the status")
    loud.add_argument("-v", "--verbose", action="store_true", help="print a line for each DLL")


def main(arguments: Namespace) -> int:
    """Check, print what was found, and return the exit status."""
    paths = arguments.paths or [path for path in [os.environ.get("SAGE_LOCAL")] if path]
    if not paths:
        raise UsageError("nothing is named: give PATH, or set the environment variable SAGE_LOCAL")
    folders = [path for path in paths if os.path.isdir(path)]
    if len(folders) == 1:  # several trees may have options that contradict each other
        places = {"lock_file": arguments.lock_file, "state_dir": arguments.state_dir}
        arguments = with_settings(arguments, find_tree(folders[0], **places))
    findings = check(paths, options_from(arguments), warn=make_progress("never", False).tell)
    options = _options(arguments)
    if arguments.json:
        print_json(findings, options)
    elif not arguments.quiet:
        top = (
            f"{os.path.realpath(folders[0]).rstrip('/')}/"
            if len(paths) == len(folders) == 1
            else ""
        )
        verdict = of_check(findings, options, top, verbose=arguments.verbose)
        show(verdict, verbose=arguments.verbose)
    return findings.exit_status


def _options(arguments: Namespace) -> list[str]:
    """Return the options that a run must repeat to do what was checked."""
    words = []
    for name in ("suffix", "exclude", "avoid", "database", "cygwin_root", "arena"):
        value = getattr(arguments, name)
        for one in value if isinstance(value, list) else [value] if value else []:
            words.append(f"--{name.replace('_', '-')}={one}")
    return words + [
        f"--{name.replace('_', '-')}"
        for name in ("force_signed", "keep_aslr")
        if getattr(arguments, name)
    ]


def of_check(
    findings: Findings, options: Sequence[str], top: str = "", *, verbose: bool
) -> Verdict:
    """Return what a person wants to know: what breaks fork, what cures it, and what does not.

    `top` is left out before the paths, but for the lines of `verbose`.
    """
    unread = f"{plural(len(findings.unread), 'file')} could not be judged"
    count = len(findings.named)
    if findings.breaks_fork:
        colour, sentence = RED, _broken(findings, options)
        sentence += f". {unread}" if findings.unread else ""
    elif findings.unread:
        colour, sentence = YELLOW, f"nothing found in {dlls(count)} that breaks fork, but {unread}"
    else:
        colour, sentence = GREEN, f"nothing here breaks fork: {dlls(count)}"
    causes = list(where_they_lay(findings.moves.values(), "lie"))
    if findings.overlaps:
        paths = [path.removeprefix(top) for group in findings.overlaps for path in group.paths]
        causes.append(f"{len(paths):,} share addresses: {names(paths)}")
    if len(findings.runs) > 1:
        causes += _commands(findings, options)
    if number := findings.at_linkers_base:
        causes.append(f"{dlls(number)} still lie where the linker put them, and may stay there")
    rows: list[str] = []
    for what, pairs in _kinds(findings, verbose=verbose):
        if verbose:
            rows += lines_of(what, pairs)
        else:
            causes += by_reason(what, [(path.removeprefix(top), why) for path, why in pairs])
    return Verdict(colour, sentence, causes, [*_groups(findings), *rows] if verbose else ())


def _kinds(findings: Findings, *, verbose: bool) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    """Yield (path, what) of each kind of problem; only `verbose` tells a file's more than once."""
    relocated = {path for path, move in findings.moves.items() if move.new_base != move.old_base}
    problems = [
        (one.path, one.what)
        for one in findings.problems
        if verbose or one.what == LOADED_ANYWHERE or one.path not in relocated
    ]
    yield "breaks fork:", problems
    stay = {one.path for one in findings.incurable}
    yield "no run moves", [pair for pair in findings.skipped if verbose or pair[0] in stay]
    told = set() if verbose else {path for path, _ in findings.skipped}
    yield "no run cures", [(p.path, p.what) for p in findings.incurable if p.path not in told]
    yield "cannot be judged:", findings.unread


def _broken(findings: Findings, options: Sequence[str]) -> str:
    broken, count = len(findings.broken), len(findings.named)
    sentence = f"BREAKS FORK: {broken:,} of {dlls(count)}" if broken else "BREAKS FORK"
    parts = []
    if findings.moves:
        moves = f"{len(findings.moves):,}"
        parts.append(
            f"{_commands(findings, options)[0]} moves {moves}"
            if len(findings.runs) == 1
            else f"the runs below move {moves}"
        )
    stay = {one.path for one in findings.incurable} & findings.named
    if stay:
        parts.append(f"{len(stay):,} {'stays' if len(stay) == 1 else 'stay'}")
    return f"{sentence}. {'; '.join(parts)}" if parts else sentence


def _commands(findings: Findings, options: Sequence[str]) -> list[str]:
    """Return the commands that make `moves`, for a shell."""
    return [
        shlex.join(
            ["rebaser", "run", run.folder, *options, *(f"--avoid={path}" for path in run.avoid)]
        )
        for run in findings.runs
    ]


def _groups(findings: Findings) -> Iterator[str]:
    """Yield a line for each DLL of the overlaps."""
    for group in findings.overlaps:
        yield f"{dlls(len(group.paths))} within {address(group.low)}-{address(group.high)}:"
        for path in group.paths:
            move = findings.moves.get(path)
            if move and move.new_base != move.old_base:
                yield f"  {path} (a run moves it to {address(move.new_base)})"
            else:
                yield f"  {path}" + ("" if path in findings.named else " (not asked about)")


def print_json(findings: Findings, options: Sequence[str]) -> None:
    """Print the findings as one JSON object."""
    from rebaser.commands import json_output

    def problems(some: Sequence[Problem]) -> list[dict[str, str]]:
        return [{"path": problem.path, "problem": problem.what} for problem in some]

    json_output.print_json(
        {
            "images": len(findings.named),
            "breaks_fork": findings.breaks_fork,
            "broken": sorted(findings.broken),
            "overlaps": [
                json_output.group_object(group.low, group.high, group.paths, group.cure)
                for group in findings.overlaps
            ],
            "problems": problems(findings.problems),
            "incurable": problems(findings.incurable),
            "failed": json_output.reason_objects(findings.unread),
            "skipped": json_output.reason_objects(findings.skipped),
            "at_linkers_base": findings.at_linkers_base,
            "would_move": json_output.move_objects(findings.moves.values()),
            "runs": _commands(findings, options),
        }
    )
