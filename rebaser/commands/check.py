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
from collections.abc import Iterable, Iterator, Sequence

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
    by_cause,
    by_reason,
    dlls,
    lines_of,
    show,
    where_they_lay,
)
from rebaser.errors import UsageError
from rebaser.progress import make_progress
from rebaser.scan.skip import Stay
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
    options = _options(arguments)  # those of a tree need not be repeated
    folders = [path for path in paths if os.path.isdir(path)]
    if len(folders) == 1:  # several trees may have options that contradict each other
        places = {"lock_file": arguments.lock_file, "state_dir": arguments.state_dir}
        arguments = with_settings(arguments, find_tree(folders[0], **places))
    findings = check(paths, options_from(arguments), warn=make_progress("never", False).tell)
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
    number = len({path for path, *_ in (*findings.unread, *findings.unjudged)})
    unread = f"{plural(number, 'file')} could not be judged"
    count = dlls(len(findings.named))
    if findings.breaks_fork:
        colour, sentence = RED, _broken(findings, options)
        sentence += f". {unread}" if number else ""
    elif number:
        colour, sentence = YELLOW, f"nothing found in {count} that breaks fork, but {unread}"
    else:
        colour, sentence = GREEN, f"nothing here breaks fork: {count}"
    causes = list(where_they_lay(findings.moves.values(), "lie"))
    if findings.overlaps:
        paths = [path.removeprefix(top) for group in findings.overlaps for path in group.paths]
        causes.append(f"{len(paths):,} share addresses: {names(paths)}")
    if len(findings.runs) > 1:
        causes += _commands(findings, options)
    if number := findings.at_linkers_base:
        causes.append(f"{dlls(number)} still lie where the linker put them, and may stay there")
    if verbose:
        return Verdict(colour, sentence, causes, [*_groups(findings), *_rows(findings)])
    relocated = {path for path, move in findings.moves.items() if move.new_base != move.old_base}
    # That others lie at a bad address is said above, by address.
    told = [p for p in findings.problems if p.what == LOADED_ANYWHERE or p.path not in relocated]
    causes += by_reason("breaks fork:", _pairs(told, top))
    skipped = {one.path for one in findings.skipped}
    stay = {one.path for one in findings.incurable} & skipped
    staying = [one for one in findings.skipped if one.path in stay]
    for what, some in (("no run moves", staying), ("cannot be judged:", findings.unjudged)):
        causes += by_cause(what, [o._replace(path=o.path.removeprefix(top)) for o in some])
    others = [one for one in findings.incurable if one.path not in stay]
    causes += by_reason("no run cures", _pairs(others, top))
    causes += by_reason(
        "cannot be judged:", [(path.removeprefix(top), why) for path, why in findings.unread]
    )
    return Verdict(colour, sentence, causes)


def _pairs(problems: Iterable[Problem], top: str) -> list[tuple[str, str]]:
    return [(one.path.removeprefix(top), one.what) for one in problems]


def _rows(findings: Findings) -> Iterator[str]:
    yield from lines_of("breaks fork:", _pairs(findings.problems, ""))
    yield from lines_of("no run moves", [(one.path, one.reason) for one in findings.skipped])
    yield from lines_of("no run cures", _pairs(findings.incurable, ""))
    yield from lines_of("cannot be judged:", findings.unread)


def _broken(findings: Findings, options: Sequence[str]) -> str:
    broken, count = len(findings.broken), len(findings.named)
    sentence = f"BREAKS FORK: {broken:,} of {dlls(count)}" if broken else "BREAKS FORK"
    parts = []
    if findings.moves:
        one = len(findings.runs) == 1
        who = _commands(findings, options)[0] if one else "the runs below"
        parts.append(f"{who} move{'s' if one else ''} {len(findings.moves):,}")
    stay = {one.path for one in findings.incurable} & findings.named
    if stay:
        are, stays = ("is", "stays") if len(stay) == 1 else ("are", "stay")
        signed = {one.path for one in findings.skipped if one.cause is Stay.SIGNED}
        parts.append(f"{len(stay):,} {f'{are} signed and ' if stay <= signed else ''}{stays}")
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
            "skipped": json_output.reason_objects((o.path, o.reason) for o in findings.skipped),
            "unjudged": [one.path for one in findings.unjudged],
            "at_linkers_base": findings.at_linkers_base,
            "would_move": json_output.move_objects(findings.moves.values()),
            "runs": _commands(findings, options),
        }
    )
