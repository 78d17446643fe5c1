"""Make a tree of DLLs fork-safe: move those that overlap or lie where others may come to lie.

The tree is ROOT, or the folder that the environment variable SAGE_LOCAL names. Nothing to do costs
next to nothing and waits for nobody; otherwise the tree's lock is taken, the DLLs that must move
are moved on copies, and each checked copy takes its original's place. What is always to be done
with a tree can stand in the file `options` of its state folder, one option a line.

exit status:
  0    nothing is left that this run could have done
  1    something failed, or DLLs still overlap that a run can move apart
  2    usage
  75   could not take the lock in the time allowed
  130  interrupted; every file is whole, old or new
"""

from __future__ import annotations

import os

from rebaser.commands import Arguments, shared
from rebaser.errors import UsageError
from rebaser.options import ENGINES
from rebaser.progress import Progress
from rebaser.run import run
from rebaser.text import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.commands.parser import Parser

USUAL: dict[str, object] = {"--json": ("json", True), "--only-from": ("only_from", str)}
USUAL |= {"-0": ("nul", True), "--no-wait": ("wait", 0.0), "--strict": ("strict", True)}
USUAL |= {"-q": ("quiet", True), "--quiet": ("quiet", True)}
OPERANDS = "root", "one"


def add_arguments(parser: Parser) -> None:
    from rebaser.commands.parser import seconds

    shared.add_root(parser)
    what, how = "what moves", "how"
    text = "only the DLLs named in FILE may move (- is standard input): one path a line, relative "
    parser.add(what, "--only-from FILE", text + "to ROOT")
    parser.add(what, "-0", "paths in FILE end in NUL", dest="nul")
    shared.add_scan_options(parser, what)
    shared.add_reserved_options(parser, what)
    shared.add_plan_options(parser, what)
    parser.add(how, "-n --dry-run", "print the plan; change nothing, take no lock")
    text = "end with status 1 also for overlaps that no run cures, of signed DLLs for example"
    parser.add(how, "--strict", text)
    parser.add(how, "--wait SECONDS", "how long the lock may take (default: any)", type=seconds)
    text = "end with status 75 if the lock is held"
    parser.add(how, "--no-wait", text, dest="wait", action="store_const", const=0.0)
    text = "a server that keeps the lock for all machines that install into this tree: redis://, "
    text += "etcd3+http(s):// or postgresql:// (needs the extra rebaser[cluster])"
    parser.add(how, "--coordinator URL", text)
    parser.add("output", "--json", "print one JSON object")
    parser.loudness("output", "print only what went wrong", "name each DLL that it speaks of")
    text = "who relocates: Cygwin's programs rebase and peflags, or rebaser itself; auto takes "
    text += "Cygwin's where this is Cygwin or MSYS2 and they are found (default: auto)"
    parser.add("advanced", "--engine", text, choices=ENGINES)
    parser.add("advanced", "--touch", "give moved files a new modification time")
    text = "show progress on stderr: a bar on a terminal, lines in a log (default: auto)"
    parser.add("advanced", "--progress", text, choices=("auto", "always", "never"))


def main(arguments: Arguments) -> int:
    if arguments.root and os.path.isfile(arguments.root):
        raise UsageError(_of_one_file(arguments.root))
    tree = shared.tree_of(arguments, arguments.root)
    arguments = shared.with_settings(arguments, tree)
    only = None
    if arguments.only_from is not None:
        from rebaser.commands.lists import first_not_there, named_paths, read_list

        listed = read_list("--only-from", arguments.only_from)
        only, folders = named_paths(listed, tree.root, tree.scope, nul=arguments.nul)
        if stranger := first_not_there(listed, only, folders, tree.root):
            complain(
                f"none of the names given to --only-from is there, such as {stranger}: they are "
                f"relative to {tree.path(tree.scope)}"
            )
    silent = arguments.quiet or arguments.json
    is_first = not os.path.lexists(tree.state.snapshot_file)
    report = run(
        tree,
        shared.options_from(arguments),
        only=only,
        wait=arguments.wait,
        dry_run=arguments.dry_run,
        strict=arguments.strict,
        coordinator=arguments.coordinator,
        progress=Progress("never" if silent else arguments.progress or "auto"),
    )
    report = report._replace(settings=arguments.settings)
    if arguments.json:
        from rebaser.commands.json_output import print_json

        fields = report._asdict()
        fields["dry_run"] = fields.pop("planned")
        del fields["strict"]
        print_json(**fields)
    elif report.exit_status or not arguments.quiet:  # else nothing to import
        from rebaser.commands.verdict import show_run

        show_run(report, tree, arguments, is_first=is_first)
    return report.exit_status


def _of_one_file(path: str) -> str:
    import shlex  # only where something goes wrong

    folder = os.environ.get("SAGE_LOCAL") or os.path.dirname(path) or "."
    command = f"echo {shlex.quote(os.path.abspath(path))} | rebaser run {shlex.quote(folder)}"
    return (
        f"{path} is not a folder: a run looks at all DLLs that must keep off each other; to move "
        f"this one alone: {command} --only-from -"
    )
