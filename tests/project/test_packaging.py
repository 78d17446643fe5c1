"""What is shipped: the wheel, the man pages and completions, and the GitHub Action."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pe
import pytest

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE / "bin"))

import make_docs  # noqa: E402


def call(*words: object, **more: object) -> str:
    """Run a program that must succeed; return its output."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in words], capture_output=True, text=True, timeout=300, **more
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


class TestDocuments:
    def test_the_man_pages_are_up_to_date(self) -> None:
        for name, text in make_docs.man_pages().items():
            assert (HERE / name).read_text(encoding="utf-8") == text, "run bin/make-docs"

    def test_the_completions_are_up_to_date(self) -> None:
        pytest.importorskip("shtab", reason="shtab is in the environment that bin/test makes")
        for name, text in make_docs.completions().items():
            assert (HERE / name).read_text(encoding="utf-8") == text, "run bin/make-docs"

    def test_groff_finds_no_fault(self) -> None:
        if shutil.which("groff") is None:
            pytest.skip("groff is not there: install groff-base")
        for page in sorted((HERE / "man").iterdir()):
            done = subprocess.run(
                ["groff", "-man", "-ww", "-Tutf8", str(page)],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            assert done.stderr == ""
            # Bold is overstrike or an escape, as groff was set up.
            assert "SYNOPSIS" in re.sub(r".\x08|\x1b\[[0-9;]*m", "", done.stdout)

    @pytest.mark.parametrize(
        ("typed", "offered"),
        [
            ("rebaser|", "run check info map status flags lock hook forget"),
            ("rebaser|run|--eng", "--engine"),
            ("rebaser|run|--engine|", "auto builtin cygwin"),
            ("rebaser|hook|", "sage pacman cygwin"),
        ],
    )
    def test_bash_completes(self, typed: str, offered: str) -> None:
        script = (
            f". {HERE}/completions/rebaser; IFS='|' read -r -a COMP_WORDS <<<'{typed}x'; "
            "last=$((${#COMP_WORDS[@]} - 1)); COMP_WORDS[last]=${COMP_WORDS[last]%x}; "
            '[ "$last" -gt 0 ] || { COMP_WORDS+=(""); last=1; }; '
            'COMP_CWORD=$last; _shtab_rebaser; echo "${COMPREPLY[*]}"'
        )
        assert call("bash", "-c", script).split() == offered.split()

    def test_zsh_takes_its_file(self) -> None:
        if shutil.which("zsh") is None:
            pytest.skip("zsh is not there: install zsh")
        call("zsh", "-n", HERE / "completions/_rebaser")


class TestAction:
    """action.yml: its form, and its steps run as a runner would run them."""

    def action(self) -> dict[str, object]:
        yaml = pytest.importorskip(
            "yaml", reason="pyyaml is in the environment that bin/test makes"
        )
        with open(HERE / "action.yml", encoding="utf-8") as file:
            return dict(yaml.safe_load(file))

    def test_its_form(self) -> None:
        action = self.action()
        inputs: dict[str, dict[str, object]] = action["inputs"]  # type: ignore[assignment]
        assert set(inputs) == {"root", "mode", "args", "shell"}
        assert inputs["mode"]["default"] == "run"
        assert inputs["root"]["required"] is True
        assert all(one["description"] for one in inputs.values())
        runs: dict[str, object] = action["runs"]  # type: ignore[assignment]
        assert runs["using"] == "composite"
        steps: list[dict[str, object]] = runs["steps"]  # type: ignore[assignment]
        for step in steps:
            # Every step of a composite action names its shell; what a user gives reaches it
            # through the environment alone, never as a part of the script.
            assert step["shell"] == "${{ inputs.shell }}"
            assert "${{" not in str(step["run"])
            named = set(re.findall(r"\$(REBASER_\w+)", str(step["run"])))
            assert named == set(step["env"])  # type: ignore[call-overload]
            call("bash", "-n", "-c", step["run"])

    def test_everything_that_it_installs_is_pinned(self) -> None:
        script: str = self.action()["runs"]["steps"][0]["run"]  # type: ignore[index]
        pinned = set(re.findall(r"([a-z-]+)==[0-9.]+(?: |$)", script, re.MULTILINE))
        lines = (HERE / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        (needed,) = (line for line in lines if line.startswith("dependencies = "))
        assert {*re.findall(r'"([a-z]+)>=', needed), "setuptools"} <= pinned
        assert "pip --no-deps --no-build-isolation" in script

    @pytest.mark.slow
    @pytest.mark.timeout(400)
    def test_its_steps_check_and_move_dlls(self, tmp_path: Path) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "cygpath").write_text('#!/bin/sh\nprintf "%s\\n" "$2"\n')
        (tools / "cygpath").chmod(0o755)
        (tools / "python3").symlink_to(sys.executable)
        root = tmp_path / "work/out of it"
        root.mkdir(parents=True)
        for name in ("one.dll", "two, three.dll"):
            (root / name).write_bytes(pe.build())
        summary = tmp_path / "summary.md"
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "GITHUB_STEP_SUMMARY": str(summary),
            "REBASER_ACTION": str(checkout(tmp_path)),
            "REBASER_WORKSPACE": str(tmp_path / "work"),
            "REBASER_ROOT": "out of it",
        }
        install, work = self.action()["runs"]["steps"]  # type: ignore[index]
        call("bash", "-eo", "pipefail", "-c", install["run"], env=environment)

        def result(mode: str, args: str = "") -> tuple[int, str]:
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", work["run"]],
                env={**environment, "REBASER_MODE": mode, "REBASER_ARGS": args},
                stdout=subprocess.PIPE,
                text=True,
                timeout=100,
            )
            return done.returncode, done.stdout

        status, output = result("check")
        assert status == 1
        notes = [line for line in output.splitlines() if line.startswith("::")]
        files = {re.match(r"::error file=(.*),title=Breaks fork::.", note)[1] for note in notes}  # type: ignore[index]
        assert files == {"out of it/one.dll", "out of it/two%2C three.dll"}
        assert "rebaser run moves them apart" in notes[0]
        assert summary.read_text().startswith("### rebaser: ")
        summary.unlink()

        status, output = result("run", "--verbose --engine builtin")
        assert (status, "::" in output) == (0, False)
        assert "moved 2 " in output
        assert "moved 2 " in summary.read_text()
        assert result("check") == (0, output_of(tmp_path, root))
        assert result("bake")[0] == 2


def output_of(home: Path, root: Path) -> str:
    """Return what the installed rebaser says of a tree itself."""
    return call(home / ".rebaser-action/bin/rebaser", "check", root)


def checkout(folder: Path) -> Path:
    """Copy what a clone would have of the project, so that a build leaves nothing in it."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("rebaser", "locks", "cygwin", "man", "completions"):
        shutil.copytree(HERE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HERE / name, copy)
    return copy


def pythons() -> list[str]:
    """Return the oldest and the newest Python that is supported and there."""
    there = []
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13"):
        program = shutil.which(f"python{version}")
        if program and not subprocess.run([program, "-c", ""], capture_output=True).returncode:
            there.append(program)
    return sorted({there[0], there[-1]}) if there else [sys.executable]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = checkout(folder)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
class TestWheel:
    def test_it_holds_what_it_should_and_nothing_else(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        wanted = {
            str(path.relative_to(HERE))
            for package in ("rebaser", "locks", "cygwin")
            for path in (HERE / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        data = "rebaser-0.1.0.data/data/share"
        wanted |= {
            f"{data}/man/man1/rebaser.1",
            f"{data}/man/man1/rebaser-lock.1",
            f"{data}/bash-completion/completions/rebaser",
            f"{data}/zsh/site-functions/_rebaser",
        }
        assert {name for name in names if ".dist-info/" not in name} == wanted

    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("python", pythons(), ids=os.path.basename)
    def test_it_works_in_an_empty_environment(
        self, wheel: Path, python: str, tmp_path: Path
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SAGE"))}
        call(python, "-m", "venv", tmp_path / "venv", env=environment)
        program = tmp_path / "venv/bin/python"
        pip = (program, "-m", "pip", "--disable-pip-version-check")
        call(*pip, "install", "--quiet", wheel, env=environment)
        assert "No broken requirements" in call(*pip, "check", env=environment)
        rebaser = tmp_path / "venv/bin/rebaser"
        assert call(rebaser, "--version").startswith("rebaser 0.1.0")
        tree = tmp_path / "tree"
        tree.mkdir()
        for name in ("one.dll", "two.dll"):
            (tree / name).write_bytes(pe.build())
        assert "moved 2 DLLs" in call(rebaser, "run", tree, "--engine", "builtin")
        assert "nothing to do" in call(rebaser, "run", tree)
        assert "no overlap" in call(rebaser, "map", tree)
        assert str(rebaser) in call(rebaser, "hook", "cygwin", tree)
        assert (tmp_path / "venv/share/man/man1/rebaser.1").exists()
