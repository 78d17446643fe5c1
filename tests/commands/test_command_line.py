"""What a person types wrongly, and what is answered: one line that says how it is right."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from trees import Rebaser, make_tree

from rebaser.commands import COMMANDS, command_module, plain_arguments
from rebaser.commands.parser import command_parser

# Of each command line the answer; TREE is a tree, FILE a DLL in it.
WRONG = [
    ("rnu TREE", "there is no command 'rnu'; did you mean run? (see rebaser --help)"),
    ("chekc", "there is no command 'chekc'; did you mean check? (see rebaser --help)"),
    ("rebase TREE", "there is no command 'rebase' (see rebaser --help)"),
    ("TREE", "there is no command 'TREE'; did you mean rebaser run TREE? (see rebaser --help)"),
    ("version", "there is no command 'version'; did you mean --version? (see rebaser --help)"),
    ("help rnu", "there is no command 'rnu'; did you mean run? (see rebaser --help)"),
    (
        "--json check TREE",
        "--json goes behind the command: rebaser check --json (see rebaser --help)",
    ),
    (
        "--wait 3 run TREE",
        "--wait goes behind the command: rebaser run --wait (see rebaser --help)",
    ),
    ("run --jsn TREE", "there is no option --jsn; did you mean --json?"),
    ("run --dryrun TREE", "there is no option --dryrun; did you mean --dry-run?"),
    ("run --dry TREE", "there is no option --dry"),
    ("run --no-wiat TREE", "there is no option --no-wiat; did you mean --no-wait?"),
    ("check --strict TREE", "there is no option --strict; it is one of rebaser run"),
    ("check -n TREE", "there is no option -n; it is one of "),
    ("-n check TREE", "there is no option --dry-run; it is one of rebaser run"),
    ("run TREE TREE", "'TREE' is one operand too many"),
    ("run -q -v TREE", "argument -v/--verbose: not allowed with argument -q/--quiet"),
    ("run --wait TREE", "argument --wait: 'TREE' is no number of seconds: 0 or more"),
    ("run TREE --wait", "argument --wait: expected one argument"),
    ("run --engine magic TREE", "argument --engine: invalid choice: 'magic' (choose from "),
    ("run --arena 2-4 TREE", "--arena 2-4: give two addresses in hexadecimal"),
    ("run FILE", "FILE is not a folder: a run looks at all DLLs that must keep off each other"),
    ("run TREE/none", "TREE/none: the root does not exist; name the folder that holds the DLLs"),
    ("run", "no tree is named: give ROOT, or set the environment variable SAGE_LOCAL"),
    ("check", "nothing is named: give PATH, or set the environment variable SAGE_LOCAL"),
    ("check TREE/none", "TREE/none: no such file or folder"),
    ("run TREE --only-from none", "--only-from none: cannot be read (No such file or directory)"),
    ("run TREE --avoid none", "--avoid none: no such file or folder; nothing was changed"),
    (
        "run TREE --arena 0x200000000-0x200000001",
        "--arena 0x200000000-0x200000001: the second address must lie above the first, with 64 KiB",
    ),
    ("run TREE -0 --only-from TREE/list", "each path given to --only-from ends in a NUL character"),
    ("run TREE --engine cygwin", "--engine cygwin needs the programs rebase and peflags on PATH"),
    ("run TREE --database none", "--database none: cannot be read: No such file or directory"),
    ("run /", "/: this whole system is no tree of DLLs; name the folder that holds them"),
    ("-n status TREE", "there is no option --dry-run; it is one of rebaser run"),
    ("map TREE --svg - --json", "--json and --svg - both want standard output: name a file"),
    ("info", "info: give either PATHs or --db "),
    ("info TREE --db FILE", "info: give either PATHs or --db "),
    ("flags", "no files: name them, or give a list of them with -T"),
    ("flags -d2 FILE", "a BOOL is one of 1, true, yes, t, y, 0, false, no, f, n"),
    ("forget TREE --force", "there is no option --force (see rebaser forget --help)"),
    ("hook pacman TREE/none", "TREE/none: this root is not a folder; pacman's is /"),
    ("check TREE --cygwin-root none", "--cygwin-root none: no such folder; nothing was changed"),
    ("hook", "the following arguments are required: sage|pacman|cygwin"),
    ("lock", "no COMMAND is given (rebaser lock --help tells more)"),
    ("lock -w soon -- true", "argument -w/--wait: 'soon' is no number of seconds: 0 or more"),
    ("lock --name a/b -- true", "a word without slashes, such as pip; a path is given with --file"),
    ("lock -u", "-u drops the lock of a descriptor: name it with --fd N"),
    ("hook apt", "invalid choice: 'apt' (choose from "),
    ("lock --nme x -- true", "there is no option --nme; did you mean --name?"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = make_tree(tmp_path / "tree", 1)
    (tree / "list").write_text("bin/x000.dll\n")
    return tree


@pytest.mark.parametrize(("line", "answer"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_line(rebaser: Rebaser, tree: Path, line: str, answer: str) -> None:
    names = {"TREE": str(tree), "FILE": str(tree / "bin/x000.dll")}
    for word, name in names.items():
        line, answer = line.replace(word, name), answer.replace(word, name)
    result = rebaser(*shlex.split(line))
    assert result.status == (64 if line.startswith("lock") else 2), result.words
    assert answer in result.err
    assert result.err.startswith("rebaser")
    assert result.err.count("\n") == 1, "a usage error is one line"
    assert result.out == ""


def test_without_a_command_the_help_is_shown(rebaser: Rebaser) -> None:
    bare = rebaser("-v")
    assert (bare.status, bare.out) == (2, "")
    helped = rebaser("--help")
    assert (helped.status, helped.out, helped.err) == (0, bare.err, "")
    assert rebaser("help").out == helped.out


def test_help_of_a_command(rebaser: Rebaser) -> None:
    assert rebaser("help", "run").out == rebaser("run", "--help").out


def test_common_options_stand_before_or_behind_the_command(rebaser: Rebaser, tree: Path) -> None:
    for words in (["-n", "run", tree], ["run", "-n", tree], ["--dry-run", "run", tree]):
        assert rebaser(*words).out.startswith("would move 1 DLL\n")
    assert rebaser("-q", "run", tree).out == ""
    assert f"\ntree {tree}" in rebaser("-v", "run", tree).out


def test_how_one_file_is_moved(rebaser: Rebaser, tree: Path) -> None:
    answer = rebaser("run", tree / "bin/x000.dll").err
    _, _, command = answer.partition("to move this one alone: echo ")
    name, _, words = command.partition(" | rebaser ")
    report = rebaser.report(*shlex.split(words), stdin=f"{name}\n".encode())
    assert [move["path"] for move in report["moved"]] == ["x000.dll"]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_that_few_need_come_last_in_the_help(name: str) -> None:
    shown = command_parser(name).format_help()
    _, heading, last = shown.partition("\nadvanced:\n")
    assert not heading or "\n\n" not in last.rstrip("\n")
    if name == "run":
        assert "--lock-file" in last
        assert "--dry-run" not in last


def test_too_little_memory_is_a_sentence(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    with names.open("wb") as file:
        file.truncate(1 << 30)
    limit = ["sh", "-c", 'ulimit -v 500000 && exec "$@"', "sh"]
    result = rebaser("run", tree, "-0", "--only-from", names, before=limit)
    assert (result.status, result.out) == (1, "")
    assert result.err == "rebaser: there is not enough memory; every file is whole, old or new\n"


def test_a_python_without_fcntl_is_told_which_to_use(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "fcntl.py").write_text("raise ModuleNotFoundError(name='fcntl')")
    result = rebaser("run", tree, env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"})
    assert result.status == 1
    assert result.err.startswith("rebaser: this Python has no fcntl: ")
    assert "python3 of Cygwin" in result.err


HOOKS = ["run", "run TREE", "run -q TREE", "run TREE --quiet --json", "run --no-wait TREE"]
HOOKS += ["run TREE --only-from - -0", "run --only-from F", "run TREE --strict --no-wait -q"]
HOOKS += ["check TREE", "check -q TREE", "check TREE --json", "check a/b.dll -q --json"]
HOOKS += ["check", "check a b", "check -q a --json b"]
HOOKS += ["lock true", "lock -- true", "lock -s -- cp -r a b", "lock --fd 200 -s", "lock --"]
HOOKS += ["lock --file F -- x", "lock --lock-file F --root T -s x", "lock --fd 200 -u"]
HOOKS += ["lock --root T -n x -s", "lock -x --nonblock make -j8 -s", "lock"]
OTHERS = ["TREE TREE", "-v TREE", "-q -v", "--only-from", "--only-from -0", "-qn", "--wait 3", "--"]
OTHERS += ["--only-from=F", "--jsn", "''", "--only-from ''", "--quie TREE", "-- TREE", "-"]
OTHERS = [f"run {line}" for line in OTHERS]
OTHERS += ["check -v a", "check -q -v a", "check -- a", "check ''", "check -x a"]
OTHERS += ["lock -w 3 true", "lock -sn true", "lock --fd"]
OTHERS += ["lock --fd=200", "lock --root", "lock - x", "lock --root -s x", "lock --name x true"]
OTHERS += ["lock --file", "lock --help", "lock -c true", "lock --root '' x", "lock -q true"]


@pytest.mark.parametrize("line", HOOKS)
def test_a_hooks_words_mean_without_argparse_what_they_mean_with_it(line: str) -> None:
    name, *words = shlex.split(line)
    plain = plain_arguments(command_module(name), words)
    parsed = command_parser(name).parsed(words)
    assert plain is not None
    assert plain.what_was_not_given is None
    found, wanted = (
        {name: value for name, value in vars(one).items() if value not in (None, False)}
        for one in (plain, parsed)
    )
    if name == "lock":  # of the word that ends the options some Pythons keep nothing
        for one in (found, wanted):
            one["words"] = one["words"][one["words"][:1] == ["--"] :]
    assert found == wanted


@pytest.mark.parametrize("line", OTHERS)
def test_all_other_words_are_for_argparse(line: str) -> None:
    name, *words = shlex.split(line)
    assert plain_arguments(command_module(name), words) is None
