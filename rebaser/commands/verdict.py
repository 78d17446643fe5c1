"""How a run and a check say what they found: the verdict first, and no more than one screen."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from cygwin.address_space import ARENA
from rebaser.commands import Arguments
from rebaser.report import Move, Report
from rebaser.scan.skip import Skipped, Stay
from rebaser.text import (
    address,
    address_size,
    byte_count,
    names,
    plural,
    printable,
    shortened,
    terminal_width,
)
from rebaser.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

# So many lines follow the verdict, which takes three at most, on a screen of 24.
MOST_LINES = 20

GREEN, YELLOW, RED = "1;32", "1;33", "1;31"  # SGR parameters


def show(
    colour: str, sentence: str, causes: list[str], rows: list[str], *, verbose: bool, out: TextIO
) -> None:
    """Print a verdict: a sentence, a line for each cause, and rows that are never broken.

    On a terminal no word is broken, and `colour` is the sentence's, which says all without it too.
    """
    width = terminal_width() if out.isatty() else 0
    for line in _fitted(sentence, width, "", "  "):
        print(painted(line, colour, out), file=out)
    lines = [line for cause in causes for line in _fitted(cause, width, "  ", "    ")]
    lines += map(printable, rows)
    if not verbose:
        if len(lines) > MOST_LINES:
            more = f"  ... and {len(lines) - MOST_LINES + 1:,} more lines (-v shows all)"
            lines[MOST_LINES - 1 :] = [more]
        if width:
            lines = [shortened(line, width) for line in lines]
    for line in lines:
        print(line, file=out)


def painted(text: str, colour: str, out: TextIO) -> str:
    """Return a text for `out` in a colour (SGR parameters), if it is a terminal that has some."""
    plain = not (colour and out.isatty()) or os.environ.get("NO_COLOR")
    return text if plain or os.environ.get("TERM") == "dumb" else f"\x1b[{colour}m{text}\x1b[0m"


def _fitted(text: str, width: int, first: str, indent: str) -> list[str]:
    """Return a text as lines of `width` columns, or as one line where that is 0."""
    if not width:
        return [first + printable(text)]
    from textwrap import TextWrapper  # 2 ms that no hook need spend

    # A command stays on one line with its folder, to be copied.
    text = printable(text).replace("rebaser run ", "rebaser\0run\0")
    wrapper = TextWrapper(
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in wrapper.wrap(text)]


def show_run(report: Report, tree: Tree, arguments: Arguments, *, is_first: bool) -> None:
    """Print what a person wants to know of a run; what failed goes to stderr, after the verdict.

    What is left alone run after run is told once, and then where something was to be done; what
    overlaps is told each time.
    """
    verbose, named = arguments.verbose, arguments.only_from is not None
    stuck = {path for group in report.overlaps for path in group.paths}
    had_work = report.moved or report.run is not None or report.exit_status
    told = [one for one in report.skipped if verbose or is_first or had_work or one.path in stuck]
    parts = [_done(report), *_left(report, not (tree.scope or named))]
    if hidden := len(report.skipped) - len(told):
        parts.append(f"{hidden:,} left alone (-v says why)")
    causes = []
    if tree.scope:
        causes.append(f"{tree.path(tree.scope).rstrip('/')} as part of the tree {tree.root}")
    causes += where_they_lay(report.moved, "lie" if report.planned else "lay")
    known = {one.path for one in told}
    if changed := [path for path in report.unfinished if path not in known]:
        causes.append(f"changed meanwhile: {names(changed)}; run rebaser again")
    if curable := [path for group in report.overlaps if group.cure for path in group.paths]:
        causes.append(f"still in each other's way: {names(curable)}")
    if report.others:
        from shlex import quote

        cure = f"rebaser run {quote(tree.root)} moves them"
        causes.append(f"{dlls(report.others)} not asked for overlap too: {cure}")
    rows: list[str] = []
    if verbose:
        rows += by_reason("skipped", [(o.path, o.reason) for o in told], verbose=True)
        version = f" ({report.engine_version})" if report.engine_version else ""
        engine = report.engine and f"{report.engine}{version}"
        facts = {"tree": report.root, "run": report.run, "engine": engine}
        facts["options of"] = report.settings
        rows.append("; ".join(f"{what} {one}" for what, one in facts.items() if one is not None))
    else:
        causes += by_reason("skipped", with_advice(told))
    if report.planned or verbose:
        rows = [*_table(report.moved, reasons=verbose), *rows]
    colour = RED if report.exit_status else YELLOW if report.overlaps else GREEN
    out = sys.stderr if arguments.quiet else sys.stdout
    show(colour, "; ".join(parts), causes, rows, verbose=verbose, out=out)
    sys.stdout.flush()
    for line in by_reason("failed", report.failed, verbose=verbose):
        print(printable(line), file=sys.stderr)


def _done(report: Report) -> str:
    if report.covered_by is not None:
        return f"covered by run {report.covered_by}, which began after this one was asked for"
    if not report.moved:
        if report.run is None and not report.exit_status:
            return f"nothing to do: {dlls(report.images)}"
        return f"nothing {'would be' if report.planned else 'was'} moved of {dlls(report.images)}"
    move, clear = ("would move", "would clear") if report.planned else ("moved", "cleared")
    relocated = sum(one.old_base != one.new_base for one in report.moved)
    parts = [f"{move} {dlls(relocated)}"] if relocated else []
    if flags := len(report.moved) - relocated:
        parts.append(f"{clear} DYNAMIC_BASE of {f'{flags:,}' if parts else dlls(flags)}")
    done = " and ".join(parts)
    if report.planned:
        return done
    return f"{done} ({byte_count(report.bytes_written)}, {report.seconds.total:.1f} s)"


def _left(report: Report, whole: bool) -> Iterator[str]:
    if report.failed:
        yield f"{len(report.failed):,} failed"
    if report.unfinished:
        yield f"{dlls(len(report.unfinished))} changed meanwhile"
    for cure in ("run", None):
        groups = [group for group in report.overlaps if group.cure == cure]
        if groups:
            paths = {path for group in groups for path in group.paths}
            signed = {one.path for one in report.skipped if one.cause is Stay.SIGNED}
            where = "one address range" if len(groups) == 1 else "addresses"
            what = "can still be moved apart" if cure else f"still share {where}"
            yield f"{dlls(len(paths), 'signed' if paths <= signed else '')} {what}"
    some = report.overlaps or report.failed or report.unfinished
    if report.moved and not (some or report.planned):
        yield "no overlap is left" if whole else "none of those asked for overlaps"


def _table(moves: Sequence[Move], *, reasons: bool) -> list[str]:
    """Return moves as lines, the first their heading; sizes are those of the slots."""
    rows = [("old base", "new base", "size", "path")] if moves else []
    for one in moves:
        path = f"{one.path} ({one.reason})" if reasons else one.path
        bases = address(one.old_base), address(one.new_base)
        rows.append((*bases, address_size(one.slot_size), path))
    wide = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([*map(str.rjust, row[:3], wide), row[3]]) for row in rows]


def where_they_lay(moves: Iterable[Move], verb: str) -> Iterator[str]:
    """Yield a line for each reason why DLLs do not stay where they lay; `verb` is lay or lie."""
    inside: dict[str, list[str]] = {}
    outside: Counter[int] = Counter()
    for move in moves:
        arena = ARENA[move.machine]
        if move.new_base == move.old_base:
            continue
        if arena.low <= move.old_base <= arena.high - move.slot_size:
            where = "where another does" if move.reason.startswith("overlaps ") else move.reason
            inside.setdefault(where, []).append(move.path)
        else:
            outside[move.old_base] += 1
    for base, count in outside.most_common()[:3]:
        if count > 1:
            yield f"{count:,} {verb} at {address(base)}, where linkers put everything"
            del outside[base]
    if outside:
        low, high = address(min(outside)), address(max(outside))
        where = low if low == high else f"{low}-{high}"
        count = sum(outside.values())
        yield f"{count:,} {verb} at {where}, where one linked tomorrow may lie too"
    for where, paths in inside.items():
        yield f"{len(paths):,} {verb} {where}: {names(paths)}"


def by_reason(
    what: str, pairs: Iterable[tuple[str, str]], *, verbose: bool = False
) -> Iterator[str]:
    """Yield a line for each reason of (path, reason), with the number of files and some names.

    With `verbose` a line for each path.
    """
    of: dict[tuple[str, str], list[str]] = {}
    for path, reason in pairs:
        of.setdefault((reason, path if verbose else ""), []).append(path)
    for (reason, _), paths in sorted(of.items(), key=lambda item: -len(item[1])):
        many = f"{len(paths):,} files ({names(paths)})"
        yield f"{what} {many if len(paths) > 1 else paths[0]}: {reason}"


def with_advice(skipped: Sequence[Skipped]) -> list[tuple[str, str]]:
    """Return (path, reason) of files, the reason with what helps; one for all of a cause."""
    number = Counter(one.cause for one in skipped)
    found = []
    for one in skipped:
        reason = one.reason if number[one.cause] == 1 else one.cause.sentence
        # A sentence that names an option says what helps.
        helps = "" if getattr(one.cause, "option", "") else one.cause.advice
        found.append((one.path, f"{reason}; {helps}" if helps else reason))
    return found


def dlls(count: int, kind: str = "") -> str:
    """Return `3 signed DLLs`."""
    return plural(count, f"{kind} DLL" if kind else "DLL")
