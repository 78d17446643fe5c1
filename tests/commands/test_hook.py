"""rebaser hook: it prints and writes nothing, and what it prints does its work for real."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pe
import pytest
from cygwin_root import CygwinRoot
from trees import read

from rebaser.commands.hook import cygwin_hook


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder with a program `rebaser`, as an installation would put it on PATH."""
    folder = tmp_path / "bin of rebaser"
    folder.mkdir()
    program = folder / "rebaser"
    checkout = Path(__file__).resolve().parents[2]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(checkout)!r})\n"
        "from rebaser.cli import main\nmain()\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return folder


@pytest.fixture
def rebaser(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of that program."""
    for name in ("SAGE_LOCAL", "SAGE_ROOT", "REBASER_LOCK_FILE", "REBASER_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return str(bin_folder / "rebaser")


def call(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        words, capture_output=True, text=True, timeout=100, **more
    )


def make_tree(root: Path, names: str = "one two three") -> list[Path]:
    """Make DLLs that all lie at one address."""
    (root / "usr/lib").mkdir(parents=True)
    files = [root / "usr/lib" / f"{name}.dll" for name in names.split()]
    for file in files:
        file.write_bytes(pe.build())
    return files


class TestPlace:
    """Standard error names the place, the command that puts it there, and the way back."""

    @pytest.mark.parametrize("manager", ["sage", "pacman", "cygwin"])
    def test_standard_output_is_the_text_alone(
        self, rebaser: str, tmp_path: Path, manager: str
    ) -> None:
        before = sorted(tmp_path.rglob("*"))
        done = call(rebaser, "hook", manager, str(tmp_path))
        assert done.returncode == 0
        place = done.stdout.split("\n")[0 if manager != "cygwin" else 1]
        assert place.startswith("# /")
        assert place[2:] in done.stderr.split("\n")[0]
        assert "To take it away again:\n  " in done.stderr
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("manager", ["pacman", "cygwin"])
    def test_the_commands_that_it_names_work(
        self, rebaser: str, tmp_path: Path, manager: str
    ) -> None:
        """Put in place and taken away by what standard error says, below another folder than /."""
        tree = tmp_path / "it's a tree"
        tree.mkdir()
        done = call(rebaser, "hook", manager, str(tree))
        put, take_away = re.findall(r"^  (.*)$", done.stderr, re.MULTILINE)
        place = tmp_path / done.stderr.split(":\n")[0].rpartition(" /")[2]

        def here(command: str) -> list[str]:
            return ["sh", "-c", re.sub(r"(?<![\w.])/(etc|var)/", rf"{tmp_path}/\1/", command)]

        environment = {**os.environ, "PATH": f"{Path(rebaser).parent}:{os.environ['PATH']}"}
        assert call(*here(put), env=environment).returncode == 0
        assert place.read_text() == done.stdout
        call(*here(take_away))
        assert not place.exists()

    def test_there_is_no_way_to_have_it_written(self, rebaser: str) -> None:
        assert call(rebaser, "hook", "pacman", "--install").returncode == 2


class TestPacman:
    def test_it_has_the_sections_that_alpm_wants(self, rebaser: str) -> None:
        lines = call(rebaser, "hook", "pacman").stdout.splitlines()
        assert lines[0] == "# /etc/pacman.d/hooks/rebaser.hook"
        for line in ("[Trigger]", "Type = Path", "[Action]", "When = PostTransaction"):
            assert line in lines
        assert "NeedsTargets" in lines
        assert "Target = usr/*.dll" in lines

    def test_the_exec_line_moves_what_pacman_names(self, rebaser: str, tmp_path: Path) -> None:
        root = tmp_path / "a root"
        one, two, three = make_tree(root)
        text = call(rebaser, "hook", "pacman", str(root)).stdout
        exec_line = next(line for line in text.splitlines() if line.startswith("Exec = "))
        # pacman runs it without a shell, in its root, the paths relative to that on stdin.
        paths = "usr/lib/one.dll\nusr/lib/two.dll\nusr/share/doc/one.txt\n"
        done = call(*shlex.split(exec_line[7:]), input=paths, cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len({read(file).base for file in (one, two, three)}) == 3
        assert read(three).base == 0x4_0000_0000  # pacman did not name it

    def test_a_root_that_is_no_folder_is_usage(self, rebaser: str, tmp_path: Path) -> None:
        done = call(rebaser, "hook", "pacman", str(tmp_path / "nowhere"))
        assert done.returncode == 2
        assert "nowhere" in done.stderr


class TestCygwinScript:
    def test_it_needs_a_tree(self, rebaser: str) -> None:
        done = call(rebaser, "hook", "cygwin")
        assert done.returncode == 2
        assert "SAGE_LOCAL" in done.stderr

    def test_a_name_that_cannot_be_quoted_is_refused(self, rebaser: str, tmp_path: Path) -> None:
        root = tmp_path / "two\nlines"
        root.mkdir()
        done = call(rebaser, "hook", "cygwin", str(root))
        assert done.returncode == 2
        assert "line break" in done.stderr

    def test_two_trees_have_two_names(self, tmp_path: Path) -> None:
        roots = [f"{tmp_path}/{name}" for name in ("a/b", "a-b", "a b", "ab", "a\udcffb")]
        hooks = [cygwin_hook(root, root) for root in roots]
        assert len({hook.place for hook in hooks}) == len(roots)
        assert all(re.fullmatch(r"/etc/postinstall/zp_[\w.-]+\.dash", h.place) for h in hooks)

    def script(self, rebaser: str, root: Path, prefix: Path) -> Path:
        """Return the script in a file; it advertises the tree below `prefix`, not below /var."""
        done = call(rebaser, "hook", "cygwin", str(root))
        assert done.returncode == 0, done.stderr
        prefix.mkdir(exist_ok=True)
        script = prefix / "zp_rebaser.dash"
        script.write_text(
            done.stdout.replace("advert=/var/", f"advert={shlex.quote(str(prefix))}/var/")
        )
        return script

    def fake_rebase(self, tmp_path: Path, status: int) -> tuple[dict[str, str], Path]:
        """Return an environment with a rebase that notes how it is called, and where."""
        folder = tmp_path / "fake"
        folder.mkdir(exist_ok=True)
        log = tmp_path / "rebase.log"
        (folder / "rebase").write_text(
            f'#!/bin/sh\necho "$1 $2" >>{log}\nsort "$3" >>{log}\nexit {status}\n'
        )
        (folder / "rebase").chmod(0o755)
        return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}, log

    def test_it_records_and_then_advertises(self, rebaser: str, tmp_path: Path) -> None:
        root = tmp_path / "it's a tree $HOME"
        files = make_tree(root)
        script = self.script(rebaser, root, tmp_path / "dest")
        environment, log = self.fake_rebase(tmp_path, 0)
        done = call("sh", str(script), "--engine", "builtin", env=environment)
        assert done.returncode == 0, done.stderr
        assert log.read_text().split("\n")[:-1] == ["-M -T", *sorted(map(str, files))]
        (advert,) = (tmp_path / "dest/var/lib/rebase/localpath.d").iterdir()
        assert advert.read_text() == f"{root}\n"

        # Nothing changed: nothing is recorded again, once the times of the files are not racy.
        deadline = time.monotonic() + 30
        while log.exists():
            assert time.monotonic() < deadline
            log.unlink()
            time.sleep(1)
            assert call("sh", str(script), "--engine", "builtin", env=environment).returncode == 0

        # A new DLL: it is.
        (root / "usr/lib/four.dll").write_bytes(pe.build())
        assert call("sh", str(script), "--engine", "builtin", env=environment).returncode == 0
        assert "four.dll" in log.read_text()

    def test_a_failing_rebase_leaves_the_tree_unadvertised(
        self, rebaser: str, tmp_path: Path
    ) -> None:
        root = tmp_path / "tree"
        make_tree(root)
        script = self.script(rebaser, root, tmp_path / "dest")
        environment, _ = self.fake_rebase(tmp_path, 2)
        done = call("sh", str(script), env=environment)
        assert done.returncode == 1
        assert "rebase -M -T LIST" in done.stderr
        assert not (tmp_path / "dest/var").exists()

    def test_a_failing_run_records_nothing(self, rebaser: str, tmp_path: Path) -> None:
        root = tmp_path / "tree"
        make_tree(root)
        script = self.script(rebaser, root, tmp_path / "dest")
        environment, log = self.fake_rebase(tmp_path, 0)
        done = call("sh", str(script), "--arena", "0x300000000-0x300020000", env=environment)
        assert done.returncode == 1
        assert "not recorded" in done.stderr
        assert not log.exists()
        assert not (tmp_path / "dest/var").exists()

    @pytest.mark.cygwin
    def test_cygwins_own_rebase_then_moves_nothing(
        self, rebaser: str, cygwin_root: CygwinRoot, real_programs: str, tmp_path: Path
    ) -> None:
        """Real DLLs in a tree beside Cygwin's system; `rebase -s` is what its setup runs."""
        root = cygwin_root.path / "opt/tree"
        root.mkdir(parents=True)
        system = cygwin_root.write_list("system", cygwin_root.images())
        cygwin_root.rebase("-s", "-b", "0x400000000", "-T", system)  # as setup does
        extensions = cygwin_root.extensions()[:8]
        files = [Path(shutil.copy(file, root)) for file in extensions]
        script = self.script(rebaser, root, cygwin_root.path)
        environment = {**os.environ, "REBASER_CYGWIN_ROOT": str(cygwin_root.path)}
        # Elsewhere than on Cygwin rebaser must be told where Cygwin's database is.
        database = cygwin_root.path / "etc/rebase.db.x86_64"
        options = ("--database", str(database), "--cygwin-root", str(cygwin_root.path))
        done = call("sh", str(script), *options, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        bases = [read(file).base for file in files]
        assert len(set(bases)) == 8
        assert all(0x2_0000_0000 < base < 0x4_0000_0000 for base in bases)

        lines = "".join(f"/cygdrive/z{file}\n" for file in files)
        (cygwin_root.path / "tmp/advertised").write_text(lines)
        cygwin_root.rebase("-s", "-T", "/tmp/advertised")
        assert [read(file).base for file in files] == bases

        # One more, placed by rebaser, and registered by the script again: both stay.
        files.append(Path(shutil.copy(cygwin_root.extensions()[9], root)))
        done = call("sh", str(script), *options, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        bases = [read(file).base for file in files]
        (cygwin_root.path / "tmp/advertised").write_text(lines + f"/cygdrive/z{files[-1]}\n")
        cygwin_root.rebase("-s", "-T", "/tmp/advertised")
        assert [read(file).base for file in files] == bases


class TestSage:
    def test_the_lines_name_the_place(self, rebaser: str) -> None:
        done = call(rebaser, "hook", "sage")
        assert done.stdout.startswith("# $SAGE_ROOT/build/bin/sage-spkg\n")
        assert call("sh", "-n", input=done.stdout).returncode == 0
        assert 'git -C "$SAGE_ROOT" checkout build/bin/sage-spkg' in done.stderr
        done = call(rebaser, "hook", "sage", "/src/my sage")
        assert done.stdout.startswith("# /src/my sage/build/")
        assert "git -C '/src/my sage' checkout" in done.stderr

    def test_the_lines_work(self, rebaser: str, tmp_path: Path) -> None:
        """Two packages with colliding DLLs, installed by a script that the lines were put in."""
        text = call(rebaser, "hook", "sage").stdout
        first_way = text.split("# Second way")[0]
        before, after = first_way.split("# After it was installed:\n")
        script = tmp_path / "sage-spkg"
        script.write_text(f'set -e\n{before}\ncp "$1" "$SAGE_LOCAL/lib/"\n{after}')
        local = tmp_path / "local"
        (local / "lib").mkdir(parents=True)
        (local / "var").mkdir()
        environment = {**os.environ, "SAGE_LOCAL": str(local), "UNAME": "CYGWIN"}
        for name in ("one", "two"):
            package = tmp_path / f"{name}.dll"
            package.write_bytes(pe.build())
            done = call("bash", str(script), str(package), env=environment)
            assert done.returncode == 0, done.stderr
        bases = {read(local / f"lib/{name}.dll").base for name in ("one", "two")}
        assert len(bases) == 2
        assert 0x4_0000_0000 not in bases


def test_an_unknown_manager_is_usage(rebaser: str) -> None:
    assert call(rebaser, "hook", "apt").returncode == 2
