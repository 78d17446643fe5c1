"""rebaser hook: what it prints, what it installs, and that both do their work for real."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pe
import pytest
from cygwin_root import CygwinRoot

from cygwin.image import read_image
from rebaser.errors import RebaserError
from rebaser.hooks import cygwin_hook, sage_edit
from rebaser.tree import Tree

# As SageMath's build/bin/sage-spkg has them, in a script of our own.
SAGE_SPKG = """\
#!/usr/bin/env bash
if [ "$UNAME" = "CYGWIN" ]; then
    exec 200>"$SAGE_LOCAL/var/lock/rebase.lock"
    sage-flock -s 200
fi
cp "$1" "$SAGE_LOCAL/lib/"
if [ "$UNAME" = "CYGWIN" ]; then
    sage-flock -u 200
    sage-flock -x "$SAGE_LOCAL/var/lock/rebase.lock" \\
        sage-rebase.sh "$SAGE_LOCAL"
fi
"""


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


def base_of(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_image(descriptor, path.stat().st_size).base
    finally:
        os.close(descriptor)


def changed(path: Path) -> tuple[int, ...]:
    """Return what differs once a file is written or replaced; reading it changes nothing."""
    st = path.stat()
    return st.st_ino, st.st_mtime_ns, st.st_ctime_ns, st.st_mode


def make_tree(root: Path, names: str = "one two three") -> list[Path]:
    """Make DLLs that all lie at one address."""
    (root / "usr/lib").mkdir(parents=True)
    files = [root / "usr/lib" / f"{name}.dll" for name in names.split()]
    for file in files:
        file.write_bytes(pe.build())
    return files


class TestPacman:
    def test_the_installed_file_is_what_is_printed(self, rebaser: str, tmp_path: Path) -> None:
        place = ("--root", str(tmp_path / "msys"))
        printed = call(rebaser, "hook", "pacman", *place).stdout
        done = call(rebaser, "hook", "pacman", "--install", *place)
        file = tmp_path / "msys/etc/pacman.d/hooks/rebaser.hook"
        assert done.returncode == 0
        assert str(file) in done.stdout
        assert file.read_text() == printed
        assert printed.startswith(f"# {file}\n")

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
        assert len({base_of(file) for file in (one, two, three)}) == 3
        assert base_of(three) == 0x4_0000_0000  # pacman did not name it

    def test_a_foreign_file_is_left(self, rebaser: str, tmp_path: Path) -> None:
        file = tmp_path / "etc/pacman.d/hooks/rebaser.hook"
        file.parent.mkdir(parents=True)
        file.write_text("mine\n")
        words = (rebaser, "hook", "pacman", "--install", "--root", str(tmp_path))
        refused = call(*words)
        assert refused.returncode == 1
        assert str(file) in refused.stderr
        assert "--force" in refused.stderr
        assert file.read_text() == "mine\n"
        forced = call(*words, "--force")
        assert forced.returncode == 0
        assert Path(f"{file}.before-rebaser").read_text() == "mine\n"
        assert "Written by 'rebaser hook pacman'" in file.read_text()

    def test_our_own_older_file_is_replaced_and_the_same_is_left(
        self, rebaser: str, tmp_path: Path
    ) -> None:
        words = (rebaser, "hook", "pacman", "--install", "--root", str(tmp_path))
        call(*words)
        file = tmp_path / "etc/pacman.d/hooks/rebaser.hook"
        before = changed(file)
        assert "already" in call(*words).stdout
        assert changed(file) == before
        file.write_text("# Written by 'rebaser hook pacman'.\n# an older text\n")
        assert "replaced" in call(*words).stdout
        assert "[Action]" in file.read_text()
        assert sorted(os.listdir(file.parent)) == ["rebaser.hook"]

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
        hooks = [cygwin_hook(Tree(root, "", root), ["rebaser"], "") for root in roots]
        assert len({hook.path for hook in hooks}) == len(roots)
        assert all(re.fullmatch(r"/etc/postinstall/zp_[\w.-]+\.dash", h.path) for h in hooks)

    def install(self, rebaser: str, root: Path, prefix: Path) -> Path:
        done = call(rebaser, "hook", "cygwin", str(root), "--install", "--root", str(prefix))
        assert done.returncode == 0, done.stderr
        (script,) = (prefix / "etc/postinstall").glob("zp_rebaser-*")
        assert script.name.startswith("zp_rebaser-")
        assert script.name.endswith(".dash")
        assert stat.S_IMODE(script.stat().st_mode) == 0o755
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
        script = self.install(rebaser, root, tmp_path / "dest")
        environment, log = self.fake_rebase(tmp_path, 0)
        done = call("sh", str(script), env=environment)
        assert done.returncode == 0, done.stderr
        assert log.read_text().split("\n")[:-1] == ["-M -T", *sorted(map(str, files))]
        (advert,) = (tmp_path / "dest/var/lib/rebase/localpath.d").iterdir()
        assert advert.read_text() == f"{root}\n"

        # Nothing changed: nothing is recorded again, after one look that settles racy times.
        call("sh", str(script), env=environment)
        log.unlink(missing_ok=True)
        assert call("sh", str(script), env=environment).returncode == 0
        assert not log.exists()

        # A new DLL: it is.
        (root / "usr/lib/four.dll").write_bytes(pe.build())
        assert call("sh", str(script), env=environment).returncode == 0
        assert "four.dll" in log.read_text()

    def test_a_failing_rebase_leaves_the_tree_unadvertised(
        self, rebaser: str, tmp_path: Path
    ) -> None:
        root = tmp_path / "tree"
        make_tree(root)
        script = self.install(rebaser, root, tmp_path / "dest")
        environment, _ = self.fake_rebase(tmp_path, 2)
        done = call("sh", str(script), env=environment)
        assert done.returncode == 1
        assert "rebase -M -T LIST" in done.stderr
        assert not (tmp_path / "dest/var").exists()

    def test_a_failing_run_records_nothing(self, rebaser: str, tmp_path: Path) -> None:
        root = tmp_path / "tree"
        make_tree(root)
        script = self.install(rebaser, root, tmp_path / "dest")
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
        script = self.install(rebaser, root, cygwin_root.path)
        environment = {**os.environ, "REBASER_CYGWIN_ROOT": str(cygwin_root.path)}
        # Elsewhere than on Cygwin rebaser must be told where Cygwin's database is.
        database = cygwin_root.path / "etc/rebase.db.x86_64"
        options = ("--database", str(database), "--cygwin-root", str(cygwin_root.path))
        done = call("sh", str(script), *options, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        bases = [base_of(file) for file in files]
        assert len(set(bases)) == 8
        assert all(0x2_0000_0000 < base < 0x4_0000_0000 for base in bases)

        lines = "".join(f"/cygdrive/z{file}\n" for file in files)
        (cygwin_root.path / "tmp/advertised").write_text(lines)
        cygwin_root.rebase("-s", "-T", "/tmp/advertised")
        assert [base_of(file) for file in files] == bases

        # One more, placed by rebaser, and registered by the script again: both stay.
        files.append(Path(shutil.copy(cygwin_root.extensions()[9], root)))
        done = call("sh", str(script), *options, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        bases = [base_of(file) for file in files]
        (cygwin_root.path / "tmp/advertised").write_text(lines + f"/cygdrive/z{files[-1]}\n")
        cygwin_root.rebase("-s", "-T", "/tmp/advertised")
        assert [base_of(file) for file in files] == bases


class TestSage:
    def test_the_lines_name_the_place(self, rebaser: str) -> None:
        text = call(rebaser, "hook", "sage").stdout
        assert text.startswith("# $SAGE_ROOT/build/bin/sage-spkg\n")
        assert f"{shlex.quote(rebaser)} lock --fd 200 -s" in text
        assert f'{shlex.quote(rebaser)} run "$SAGE_LOCAL"' in text
        assert call("sh", "-n", input=text).returncode == 0

    def test_the_edited_script_works(self, rebaser: str, tmp_path: Path) -> None:
        """Two packages with colliding DLLs, installed by the edited sage-spkg."""
        script = tmp_path / "sage/build/bin/sage-spkg"
        script.parent.mkdir(parents=True)
        script.write_text(SAGE_SPKG)
        script.chmod(0o755)
        words = (rebaser, "hook", "sage", "--install", "--root", str(tmp_path / "sage"))
        done = call(*words)
        assert done.returncode == 0, done.stderr
        assert Path(f"{script}.before-rebaser").read_text() == SAGE_SPKG
        assert stat.S_IMODE(script.stat().st_mode) == 0o755
        text = script.read_text()
        assert "sage-flock" not in text
        assert "sage-rebase.sh" not in text
        assert "already" in call(*words).stdout
        assert script.read_text() == text

        local = tmp_path / "local"
        (local / "lib").mkdir(parents=True)
        (local / "var/lock").mkdir(parents=True)
        environment = {**os.environ, "SAGE_LOCAL": str(local), "UNAME": "CYGWIN"}
        for name in ("one", "two"):
            package = tmp_path / f"{name}.dll"
            package.write_bytes(pe.build())
            done = call(str(script), str(package), env=environment)
            assert done.returncode == 0, done.stderr
        bases = {base_of(local / f"lib/{name}.dll") for name in ("one", "two")}
        assert len(bases) == 2
        assert 0x4_0000_0000 not in bases

    def test_an_unknown_script_is_left(self, rebaser: str, tmp_path: Path) -> None:
        script = tmp_path / "build/bin/sage-spkg"
        script.parent.mkdir(parents=True)
        script.write_text("#!/bin/sh\n# nothing of a rebase here\n")
        before = changed(script)
        done = call(rebaser, "hook", "sage", "--install", "--root", str(tmp_path))
        assert done.returncode == 1
        assert "left as it was" in done.stderr
        assert changed(script) == before
        assert os.listdir(script.parent) == ["sage-spkg"]

    def test_no_sources(self, rebaser: str, tmp_path: Path) -> None:
        assert call(rebaser, "hook", "sage", "--install").returncode == 2
        done = call(rebaser, "hook", "sage", "--install", "--root", str(tmp_path))
        assert done.returncode == 1
        assert "no such file" in done.stderr

    def test_a_backslash_in_the_program_stays_one(self) -> None:
        assert r"'C:\1\rebaser' run" in sage_edit(SAGE_SPKG, ["C:\\1\\rebaser"])

    def test_half_a_script_is_refused(self) -> None:
        with pytest.raises(RebaserError, match="-u 200"):
            sage_edit(SAGE_SPKG.replace("-u 200", "-u 199"), ["rebaser"])


def test_an_unknown_manager_is_usage(rebaser: str) -> None:
    assert call(rebaser, "hook", "apt").returncode == 2


def test_an_unwritable_place_is_a_sentence(rebaser: str, tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where a folder is wanted")
    done = call(rebaser, "hook", "pacman", "--install", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
