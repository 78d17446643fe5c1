"""Real Cygwin for the tests: the roots that bin/cygwin-root makes, their programs run by Wine.

The fixtures `pristine_root` and `cygwin_root` are the older one (Cygwin 3.4.7, rebase 4.6.3, Python
2.7), `pristine_new_root` and `new_root` the newer one (Cygwin 3.5.3, rebase 4.6.6, Python 3.9).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cygwin import programs

HERE = Path(__file__).resolve().parents[1]
FAKE_PROGRAMS = HERE / "fake_programs"
CYGWIN = HERE.parent / "bin" / "cygwin"
OLD, NEW = "cygwin-3.4.7", "cygwin-3.5.3"
DYNLOAD = "lib/python2.7/lib-dynload"

# Run inside Cygwin by its Python 2.7. Writes to a file: pipes hang under Wine.
_FORKS = """\
import os, sys
maps = {}
modules = [__import__(name) for name in sys.argv[1].split(",")]
for line in open("/proc/self/maps"):
    words = line.split(None, 5)
    if len(words) == 6 and words[5].strip().lower().endswith(".dll"):
        start = int(words[0].split("-")[0], 16)
        name = words[5].strip()
        maps[name] = min(start, maps.get(name, start))
failed, words = 0, []
for _ in range(3):
    try:
        child = os.fork()
    except OSError as error:
        failed += 1
        words.append(str(error))
        continue
    if not child:
        os._exit(7)
    if os.waitpid(child, 0)[1] != 7 << 8:
        failed += 1
with open(sys.argv[2], "w") as out:
    out.write("%d\\n%s\\n" % (failed, "; ".join(words)))
    for name in sorted(maps):
        out.write("%x %s\\n" % (maps[name], name))
"""


def location(name: str = OLD) -> Path:
    """Return where bin/cygwin-root puts a root; the rule is the same as there."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "rebaser", name)


def cygwin_path(path: str, cygwin_root: str) -> str:
    """Return what Cygwin under Wine calls the host's file `path`, an absolute name.

    Below `cygwin_root` the names are those that Cygwin's own lists use, `/usr/bin/x`, `/usr/lib/x`.
    """
    path, root = os.path.normpath(path), os.path.normpath(cygwin_root)
    if f"{path}/".startswith(f"{root}/"):
        inner = path[len(root) :] or "/"
        is_in_usr = inner.split("/")[1] in ("bin", "lib")
        return f"/usr{inner}" if is_in_usr else inner
    return f"/cygdrive/z{path}"


@dataclass(frozen=True)
class Forks:
    """What Cygwin's Python found when it forked three times with some modules loaded."""

    failed: int  #: how many of the three
    words: str  #: the errors
    bases: dict[str, int]  #: where each DLL really lies, by its Cygwin path


@dataclass(frozen=True)
class CygwinRoot:
    """A folder that is `/` to the Cygwin programs in it."""

    path: Path
    release: str = OLD

    @property
    def settings(self) -> dict[str, str]:
        """Return what tells bin/cygwin of this root, and which folder of Wine's own it shares."""
        prefix = f"{location(self.release)}.wine"
        return {"REBASER_CYGWIN_ROOT": str(self.path), "WINEPREFIX": prefix}

    def run(self, program: str, *arguments: str, timeout: float = 60) -> programs.Outcome:
        """Run a program of the root, `rebase`, with Cygwin names as arguments."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return programs.run(
            ["env", *settings, str(CYGWIN), program, *arguments],
            timeout=timeout,
            cwd=str(self.path),
        )

    def rebase(self, *arguments: str, timeout: float = 120) -> programs.Outcome:
        """Run Cygwin's rebase, which must end with status 0."""
        outcome = self.run("rebase", *arguments, timeout=timeout)
        assert outcome.status == 0, str(outcome)
        return outcome

    def dlls(self) -> list[Path]:
        """Return all files of the root called .dll, sorted."""
        return self._files("*.dll")

    def images(self) -> list[Path]:
        """Return the DLLs that are Cygwin's business, those called .so too, sorted."""
        return [
            file
            for file in sorted([*self._files("*.dll"), *self._files("*.so")])
            if file.name != "cygwin1.dll" and "sys-root" not in file.parts
        ]

    def _files(self, pattern: str) -> list[Path]:
        found = self.path.rglob(pattern)
        left = self.path / "tmp"  # what tests have left there is none of Cygwin's
        return sorted(
            file
            for file in found
            if file.is_file() and not file.is_symlink() and left not in file.parents
        )

    def extensions(self) -> list[Path]:
        """Return the extension modules of Cygwin's Python 2.7, sorted."""
        return sorted((self.path / DYNLOAD).glob("*.dll"))

    def name(self, file: Path) -> str:
        """Return what Cygwin calls a file of the root."""
        return cygwin_path(str(file), str(self.path))

    def write_list(self, name: str, files: list[Path]) -> str:
        """Write a list of files for `rebase -T`; return the list's Cygwin name."""
        lines = "".join(f"{self.name(file)}\n" for file in files)
        (self.path / "tmp" / name).write_text(lines, encoding="utf-8")
        return f"/tmp/{name}"

    def collide(self, base: int = 0x4_0000_0000) -> None:
        """Move every extension module to the same base, one by one, by Cygwin's rebase."""
        for file in self.extensions():
            self.rebase("-b", f"0x{base:x}", self.name(file))

    def forks(self, modules: str = "_socket,_ssl,_json,datetime,math") -> Forks:
        """Load modules in Cygwin's Python, fork three times, and say how that went.

        Wine itself lets one fork in some two hundred fail: a run in which some failed, but not
        all, is repeated.
        """
        (self.path / "tmp" / "forks.py").write_text(_FORKS, encoding="utf-8")
        result = self.path / "tmp" / "forks.out"
        for _ in range(4):
            result.unlink(missing_ok=True)
            outcome = self.run("python2.7", "/tmp/forks.py", modules, "/tmp/forks.out")
            assert result.exists(), str(outcome)
            failed, words, *maps = result.read_text(encoding="utf-8").splitlines()
            if failed in "03":
                break
        pairs = (line.split(" ", 1) for line in maps)
        return Forks(int(failed), words, {name: int(base, 16) for base, name in pairs})


def pristine(name: str) -> CygwinRoot:
    """Return a root as it was made."""
    path = location(name)
    if not Path(f"{path}.wine", "ready").exists() or not path.is_dir():
        option = " --old" if name == OLD else ""
        missing = f"real Cygwin is not there: run bin/cygwin-root{option}"
        # Where CI has made the root, a skipped test would hide that it did not work.
        if os.environ.get("REBASER_DEMAND_CYGWIN"):
            pytest.fail(missing)
        pytest.skip(missing)
    return CygwinRoot(path, name)


@contextlib.contextmanager
def copied(pristine_root: CygwinRoot) -> Iterator[CygwinRoot]:
    """Make a root whose DLLs (called .dll or .so) a test may change.

    Other files are hard links to the pristine root, without documentation and the like.
    """
    with tempfile.TemporaryDirectory(prefix="cygwin-", dir=pristine_root.path.parent) as room:
        path = Path(room, "root")
        shutil.copytree(
            pristine_root.path,
            path,
            symlinks=True,
            copy_function=_link_or_copy,
            ignore=_what_no_program_needs,
        )
        yield CygwinRoot(path, pristine_root.release)


@pytest.fixture(scope="session")
def pristine_root() -> CygwinRoot:
    """Return the older root as it was made; tests read it and change nothing."""
    root = pristine(OLD)
    os.environ.update(root.settings)
    return root


@pytest.fixture(scope="session")
def pristine_new_root() -> CygwinRoot:
    """Return the newer root as it was made; tests read it and change nothing."""
    return pristine(NEW)


@pytest.fixture
def cygwin_root(pristine_root: CygwinRoot) -> Iterator[CygwinRoot]:
    """Return an older root of the test's own."""
    with copied(pristine_root) as root:
        yield root


@pytest.fixture
def new_root(pristine_new_root: CygwinRoot) -> Iterator[CygwinRoot]:
    """Return a newer root of the test's own."""
    with copied(pristine_new_root) as root:
        yield root


def put_on_path(root: CygwinRoot, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a root's own rebase and peflags first on PATH; return their folder."""
    folder = str(FAKE_PROGRAMS / "wine")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in root.settings.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def real_programs(pristine_root: CygwinRoot, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put rebase and peflags 4.6.3 first on PATH; return their folder."""
    return put_on_path(pristine_root, monkeypatch)


@pytest.fixture
def new_programs(pristine_new_root: CygwinRoot, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put rebase and peflags 4.6.6 first on PATH; return their folder."""
    return put_on_path(pristine_new_root, monkeypatch)


def _what_no_program_needs(folder: str, names: list[str]) -> list[str]:
    if os.path.basename(folder) == "share":
        return [name for name in names if name != "perl5"]
    return [name for name in names if name == "include" or name.endswith(".a")]


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith((".dll", ".so")):
        shutil.copy2(source, target)
    else:
        os.link(source, target)
