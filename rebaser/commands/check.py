"""Say what breaks fork in files, and in the DLLs below folders; change nothing, take no lock.

Without PATH the folder that the environment variable SAGE_LOCAL names is looked at.

exit status:
  0    nothing breaks fork
  1    something does, or a file could not be judged
  2    usage
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from rebaser.check import LOADED_ANYWHERE, Findings, check
from rebaser.commands import Arguments, shared
from rebaser.commands import verdict as say
from rebaser.commands.json_output import print_json
from rebaser.errors import UsageError
from rebaser.progress import Progress
from rebaser.scan.skip import Stay
from rebaser.text import address, complain, names, plural
from rebaser.tree import posix_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.commands.parser import Parser

USUAL = {"--json": ("json", True), "-q": ("quiet", True), "--quiet": ("quiet", True)}
OPERANDS = "paths", "some"


def add_arguments(parser: Parser) -> None:
    parser.intermixed = True
    parser.add("", "paths PATH ...", "files and folders (default: $SAGE_LOCAL)")
    shared.add_scan_options(parser)
    shared.add_reserved_options(parser)
    shared.add_plan_options(parser)
    shared.add_place_options(parser)
    parser.add("output", "--json", "print one JSON object")
    parser.loudness("output", "print nothing: see the status", "name each DLL that it speaks of")


# What a run must be told again, to do what was checked.
REPEATED = (
    "suffix exclude avoid database cygwin_root arena force_signed keep_aslr lock_file state_dir"
)


def main(arguments: Arguments) -> int:
    paths = arguments.paths or [path for path in [os.environ.get("SAGE_LOCAL")] if path]
    if not paths:
        raise UsageError("nothing is named: give PATH, or set the environment variable SAGE_LOCAL")
    paths = list(map(posix_name, paths))
    repeated = list(_repeated(arguments))  # those of a tree need not be
    folders = [path for path in paths if os.path.isdir(path)]
    trees = {tree.root: tree for tree in (shared.tree_of(arguments, one) for one in folders)}
    if len(trees) == 1:  # several may have options that contradict each other
        arguments = shared.with_settings(arguments, *trees.values())
    elif any(list(shared.read_settings(tree.state)) for tree in trees.values()):
        complain("several trees are named: what stands in the options of each is not followed")
    options, state = shared.options_from(arguments), arguments.state_dir
    findings = check(paths, options, state_dir=state, warn=Progress().tell)
    commands = []
    for folder, others in findings.runs.items():
        from shlex import join  # 2 ms, where there is something to cure

        avoided = map("--avoid={}".format, others)
        commands.append(join(["rebaser", "run", folder, *repeated, *avoided]))
    if arguments.json:
        print_json(
            images=len(findings.named),
            breaks_fork=findings.breaks_fork,
            broken=sorted(findings.broken),
            overlaps=findings.overlaps,
            problems=findings.problems,
            incurable=findings.incurable,
            failed=findings.unread,
            skipped=findings.skipped,
            unjudged=[one.path for one in findings.unjudged],
            at_linkers_base=findings.at_linkers_base,
            would_move=list(findings.moves.values()),
            runs=commands,
        )
    elif not arguments.quiet:
        alone = len(paths) == len(folders) == 1
        top = f"{os.path.realpath(paths[0]).rstrip('/')}/" if alone else ""
        _show(findings, commands, top, verbose=arguments.verbose)
    return findings.exit_status


def _repeated(arguments: Arguments) -> Iterator[str]:
    for name in REPEATED.split():
        option, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
        for one in value if isinstance(value, list) else filter(None, [value]):
            yield option if one is True else f"{option}={one}"


def _show(findings: Findings, commands: Sequence[str], top: str, *, verbose: bool) -> None:
    """Print what a person wants to know: what breaks fork, what cures it, and what does not.

    `commands` make the moves. `top` is left out before the paths.
    """
    unread = [*say.with_advice(findings.unjudged), *findings.unread]
    not_judged = f"{plural(len({path for path, _ in unread}), 'file')} could not be judged"
    count = say.dlls(len(findings.named))
    if findings.breaks_fork:
        colour, sentence = say.RED, _broken(findings, commands)
        sentence += f". {not_judged}" if unread else ""
    elif unread:
        colour = say.YELLOW
        sentence = f"nothing found in {count} that breaks fork, but {not_judged}"
    else:
        colour, sentence = say.GREEN, f"nothing here breaks fork: {count}"
    causes = list(say.where_they_lay(findings.moves.values(), "lie"))
    if findings.overlaps:
        paths = [path.removeprefix(top) for group in findings.overlaps for path in group.paths]
        causes.append(f"{len(paths):,} share addresses: {names(paths)}")
    if len(commands) > 1:
        causes += commands
    if number := findings.at_linkers_base:
        causes.append(f"{say.dlls(number)} still lie where the linker put them, and may stay there")
    skipped = [(one.path, one.reason) for one in findings.skipped]
    problems, incurable = findings.problems, findings.incurable
    if verbose:
        causes += _groups(findings)
    else:
        stuck = {path for path, _ in incurable}
        # That DLLs lie at a bad address, from which a run moves them, is said by address.
        moved = {path for path, move in findings.moves.items() if move.new_base != move.old_base}
        problems = tuple(
            (path, what)
            for path, what in problems
            if path not in stuck and (what == LOADED_ANYWHERE or path not in moved)
        )
        skipped = say.with_advice([one for one in findings.skipped if one.path in stuck])
        incurable = tuple(one for one in incurable if one[0] not in dict(skipped))
    for what, pairs in (
        ("breaks fork:", problems),
        ("no run moves", skipped),
        ("no run cures", incurable),
        ("cannot be judged:", unread),
    ):
        told = [(path.removeprefix(top), why) for path, why in pairs]
        causes += say.by_reason(what, told, verbose=verbose)
    say.show(colour, sentence, causes, [], verbose=verbose, out=sys.stdout)


def _broken(findings: Findings, commands: Sequence[str]) -> str:
    broken, count = len(findings.broken), len(findings.named)
    parts = []
    if findings.moves:
        who = f"{commands[0]} moves" if len(commands) == 1 else "the runs below move"
        parts.append(f"{who} {len(findings.moves):,}")
    if stay := {path for path, _ in findings.incurable} & findings.named:
        are, stays = ("is", "stays") if len(stay) == 1 else ("are", "stay")
        signed = {one.path for one in findings.skipped if one.cause is Stay.SIGNED}
        parts.append(f"{len(stay):,} {f'{are} signed and ' if stay <= signed else ''}{stays}")
    sentence = f"BREAKS FORK: {broken:,} of {say.dlls(count)}" if broken else "BREAKS FORK"
    return f"{sentence}. {'; '.join(parts)}" if parts else sentence


def _groups(findings: Findings) -> Iterator[str]:
    """Yield a line for each DLL of the overlaps."""
    for group in findings.overlaps:
        yield f"{say.dlls(len(group.paths))} within {address(group.low)}-{address(group.high)}:"
        for path in group.paths:
            move = findings.moves.get(path)
            if move and move.new_base != move.old_base:
                yield f"  {path} (a run moves it to {address(move.new_base)})"
            else:
                yield f"  {path}" + ("" if path in findings.named else " (not asked about)")
