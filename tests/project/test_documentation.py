"""README and docs: they name what --help names, their links lead somewhere, their commands run."""

from __future__ import annotations

import argparse
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pe
import pytest

import rebaser
from rebaser.commands import COMMANDS, overview
from rebaser.commands.parser import command_parser

HERE = Path(__file__).resolve().parents[2]
PAGES = [HERE / "README.md", HERE / "CONTRIBUTING.md", *sorted((HERE / "docs").glob("*.md"))]
README = HERE / "README.md"


def text_of(page: Path) -> str:
    if not page.exists():
        pytest.skip(f"{page.name} is not written yet")
    return page.read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, to the next one of the same or a higher level."""
    level = heading.split(" ")[0]
    after = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", after, maxsplit=1)[0]


def options_of(name: str) -> set[str]:
    """Return the option strings that --help of a command names."""
    parser = command_parser(name)
    return {
        option
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
    } - {"-h", "--help"}


def options_in(text: str) -> set[str]:
    """Return the options at the left of the tables of a text."""
    cells = [line.split("|")[1] for line in text.splitlines() if re.match(r"\| *`-", line)]
    code = re.findall(r"`(-[^`]*)`", " ".join(line for line in cells))
    return {re.split(r"[ =]", one, maxsplit=1)[0] for one in code}


def whole_cells(text: str) -> str:
    r"""Return a text whose `\|` inside tables cannot be taken for the end of a cell."""
    return text.replace("\\|", "/")


class TestHelp:
    def test_readme_and_help_name_the_same_options(self) -> None:
        text = whole_cells(section(text_of(README), "### rebaser run"))
        rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `-")]
        named = {
            re.split(r"[ =]", one, maxsplit=1)[0]
            for left, right in rows
            for one in [*re.findall(r"`(-[^`]*)`", left), *re.findall(r"with `(-\d)`", right)]
        }
        assert named == options_of("run")

    def test_readme_and_help_name_the_same_exit_statuses(self) -> None:
        text = section(text_of(README), "### rebaser run")
        table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE))
        described = str(command_parser("run").description).split("exit status:\n")[1]
        assert table == dict(re.findall(r"^ +(\d+) +(.*)$", described, re.MULTILINE))

    def test_locks_and_help_name_the_same_options(self) -> None:
        text = section(text_of(HERE / "docs/locks.md"), "## rebaser lock")
        assert options_of("lock") - options_in(text) <= {"--root", "--lock-file"}
        assert options_in(text) - options_of("lock") == set()
        assert "--root" in text
        assert "--lock-file" in text

    def test_readme_names_every_command_as_help_does(self) -> None:
        text = text_of(README)
        help_ = overview()
        for name, purpose in COMMANDS.items():
            assert re.search(rf"^\| `rebaser {name}\b[^\n]*\| {re.escape(purpose)} \|$", text, re.M)
            assert re.search(rf"^ +{name} +{re.escape(purpose)}$", help_, re.M)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_says_its_exit_statuses(self, name: str) -> None:
        shown = command_parser(name).format_help()
        assert "exit status" in shown or name == "flags"

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_option_is_explained(self, name: str) -> None:
        for action in command_parser(name)._actions:
            assert action.help, action.option_strings or action.dest


class TestPages:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_options_in_commands_exist(self, page: Path) -> None:
        known = {name: options_of(name) for name in COMMANDS}
        for name, words in re.findall(
            r"rebaser (run|check|info|map|status|hook)((?: [^\n`|#;]+)?)", text_of(page)
        ):
            for option in re.findall(r"(?<=\s)(--[a-z-]+|-0)", words.split(" -- ")[0]):
                assert option in known[name], f"rebaser {name}{words}"

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_lead_somewhere(self, page: Path) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", text_of(file), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
                assert anchor in anchors, target

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_files_and_tests_that_are_named_are_there(self, page: Path) -> None:
        rooms = r"(?:rebaser|cygwin|locks|bench|bin|docs|tests)/"
        for path in re.findall(rf"`({rooms}[\w./-]*)`", text_of(page)):
            assert (HERE / path).exists(), path
        text = {path.name: path.read_text("utf-8") for path in HERE.glob("tests/*/test_*.py")}
        for line in text_of(page).splitlines():
            module = ""
            for name in re.findall(r"`(test_[\w.*]+)`", line):
                module = name if name.endswith(".py") else module
                tests = "" if name == module else rf"\bdef {name.replace('*', '.*')}\("
                assert re.search(tests, text[module]), f"{module}: {name}"

    def test_each_helper_of_the_tests_is_listed_with_what_it_says_of_itself(self) -> None:
        rows = re.findall(
            r"^\| `(.*)` \| (.*) \|$", text_of(HERE / "tests/support/README.md"), re.M
        )
        paths = sorted(HERE.glob("tests/support/*.py"))
        first = [path.read_text("utf-8").split('"""')[1].split("\n")[0] for path in paths]
        assert rows == [(path.name, line.rstrip(".")) for path, line in zip(paths, first)]

    def test_the_two_walks_lead_through_the_code(self) -> None:
        for step in re.findall(r"`([\w.]+)`", section(text_of(PAGES[1]), "## The two walks")):
            assert pkgutil.resolve_name(f"rebaser.{step}"), step

    def test_the_messages_that_are_explained_are_those_that_are_printed(self) -> None:
        text = section(text_of(HERE / "docs/my-fork-fails.md"), "## What `rebaser run` says")
        source = " ".join(
            " ".join(re.findall(r'f?"((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")))
            for package in ("rebaser", "cygwin", "locks")
            for path in (HERE / package).rglob("*.py")
        )
        source = re.sub(r"\{[^{}]*\}", "…", source)
        source = re.sub(r"\s+", " ", source)
        for row in text.splitlines():
            if not row.startswith("| `"):
                continue
            for message in re.findall(r"`([^`]+)`", row.split("|")[1]):
                fixed = re.sub(r"^skipped X\.dll: ", "", message)
                gaps = r"[…()]|[XY]\.dll|(?:held exclusively by pid |process )?\bN\b|x86_64"
                for part in re.split(gaps, fixed):
                    words = part.strip(" :,.")
                    assert not words or words in source, f"{message!r}: no {words!r}"


def blocks() -> Iterator[object]:
    """Yield every block of shell commands of the pages that calls rebaser."""
    for page in filter(Path.exists, PAGES):
        found = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
        for number, block in enumerate(found):
            lines = [line for line in block.splitlines() if not re.match(r"bin/|\.?/?bin/", line)]
            if re.search(r"^(.*&& )?rebaser ", "\n".join(lines), re.MULTILINE):
                yield pytest.param("\n".join(lines), id=f"{page.stem}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize("block", list(blocks()))
def test_the_commands_run(block: str, tmp_path: Path) -> None:
    """As they stand, but for the names of folders; of other programs there are stand-ins."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "pip", "pipx", "COMMAND"):
        (tools / name).write_text("#!/bin/sh\nexit 0\n")
    (tools / "rebaser").write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(HERE)!r})\n"
        "from rebaser.cli import main\nmain()\n"
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    tree = tmp_path / "tree"
    (tree / "var/lock").mkdir(parents=True)
    (tree / "bin").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    for name in ("one.dll", "two.dll"):
        (tree / "bin" / name).write_bytes(pe.build())
        (work / name).write_bytes(pe.build())
    for name in ("installed-files.txt", "LIST"):
        (work / name).write_text("bin/one.dll\n")
    for name, folder in (("/opt/sage", tree), ("/srv/data", work), ("TREE", tree)):
        block = re.sub(rf"(?<![\w/]){name}\b", str(folder), block)
    block = block.replace("X.dll", str(tree / "bin/one.dll"))
    done = subprocess.run(
        ["bash", "-uc", block],
        cwd=work,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("REBASER_")},
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SAGE_LOCAL": str(tree),
            "SAGE_VENV": str(tree / "bin"),
            "PREFIX": str(tree),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "--fd 200 -u" in block and "exec 200" not in block:
        # The lines of a script that has locked descriptor 200 before.
        assert "descriptor" in done.stderr or "200" in done.stderr
        return
    assert done.returncode in (0, 1), done.stderr
    for word in ("Traceback", "usage:", "bug in rebaser", "not found"):
        assert word not in done.stderr, done.stderr


def test_the_examples_of_the_api_run(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGE_LOCAL", raising=False)
    blocks = re.findall(r"```python\n(.*?)```", text_of(HERE / "docs/api.md"), re.S)
    assert len(blocks) > 3
    for block in blocks:
        exec(block.replace("/opt/sage", str(tree)), {})


def test_the_functions_of_the_api_take_what_their_page_says() -> None:
    page = text_of(HERE / "docs/api.md")
    calls = re.findall(r"^\| `([a-z_]+)\((.*)\)` \|", page, re.M)
    assert {"find_tree", "run", "scan", "survey", "plan", "check"} <= {name for name, _ in calls}
    for name, parameters in calls:
        told: dict[str, object] = {}
        exec(f"def {name}({parameters.replace('...', 'None')}): ...", {"Options": object}, told)
        is_told = inspect.signature(told[name])  # type: ignore[arg-type]
        real = inspect.signature(getattr(rebaser, name)).parameters
        for parameter in is_told.parameters.values():
            there = real[parameter.name]
            assert there.kind == parameter.kind, f"{name}: {parameter}"
            has_default = there.default is not inspect.Parameter.empty
            assert has_default == (parameter.default is not inspect.Parameter.empty), parameter
