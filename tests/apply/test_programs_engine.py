"""The engine that runs rebase and peflags: with programs of every character, and the real ones."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pe
import pytest
from cygwin_root import FAKE_PROGRAMS
from halted import PACE

from cygwin.image import Image, read_image
from cygwin.programs import Outcome, Programs
from cygwin.relocation import check_and_sum, relocate
from cygwin.relocation_table import Section
from rebaser.apply.engines import BuiltinEngine, Staged
from rebaser.apply.engines.cygwin import CygwinEngine, cannot_move

BASE = 0x2_0001_0000
GAP = 0x10000

Stage = Callable[..., Staged]


def image_of(path: Path) -> Image:
    with path.open("rb") as file:
        return read_image(file.fileno(), path.stat().st_size)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Return a function that copies a file into the staging folder; all are open till the end."""
    folder = tmp_path / "stage"
    folder.mkdir()
    descriptors = []

    def make(original: Path, new_base: int, *, name: str = "", clear: bool = True) -> Staged:
        path = folder / (name or original.name)
        shutil.copy(original, path)
        source, copy = os.open(original, os.O_RDONLY), os.open(path, os.O_RDWR)
        descriptors.extend((source, copy))
        return Staged(str(path), source, copy, image_of(original), new_base, clear)

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


def check(item: Staged) -> None:
    check_and_sum(
        item.source,
        item.copy,
        item.image,
        item.new_base,
        clear_dynamic_base=item.clear_dynamic_base,
    )


def expected(item: Staged, folder: Path) -> bytes:
    """Return the bytes that the staged copy must have at the end."""
    copy = folder / "expected"
    shutil.copy(item.path, copy)
    with copy.open("r+b") as file:
        relocate(
            file.fileno(), item.image, item.new_base, clear_dynamic_base=item.clear_dynamic_base
        )
        check(item._replace(copy=file.fileno()))
    return copy.read_bytes()


@pytest.fixture
def staged(tmp_path: Path, stage: Stage) -> list[Staged]:
    """Return seven copies for seven slots, adjacent but for one gap, in no order."""
    items, base = [], BASE
    for number in (5, 3, 6, 1, 0, 2, 4):
        path = tmp_path / f"{number}.dll"
        path.write_bytes(pe.build(data_size=0x2000 + number * 0x6000))
        items.append(stage(path, base))
        base = items[-1].image.slot_size + base + (GAP if number == 6 else 0)
    return items[::2] + items[1::2]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CygwinEngine]:
    """Return a function that makes an engine from the fake programs of a character."""
    here = str(Path(sys.executable).parent)  # whose Python has what the fakes need
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")

    def make(character: str, warn: Callable[[str], None] | None = None) -> CygwinEngine:
        programs = Programs.find(str(FAKE_PROGRAMS / character))
        assert programs is not None
        fallback = (BuiltinEngine(), warn) if warn else ()
        return CygwinEngine(programs, *fallback, seconds_a_call=SECONDS.get(character, 60))

    return make


def bytes_of(staged: Sequence[Staged]) -> dict[str, bytes]:
    return {item.path: Path(item.path).read_bytes() for item in staged}


@pytest.fixture
def right(staged: list[Staged], tmp_path: Path) -> dict[str, bytes]:
    """Return by the path of each copy the bytes that it must have at the end."""
    return {item.path: expected(item, tmp_path) for item in staged}


#: On Cygwin a program may take two seconds to start.
SECONDS = {"hangs": 2 if PACE == 1 else 10}

CHARACTERS = {
    # how many of the seven are done, and words that each reason has
    "obedient": (7, ""),
    "today": (7, ""),
    "idle": (0, "rebase -8 -b 0x2000"),
    "liar": (0, "ended with status 0, saying: 0000000.dll: new base = 200010000"),
    "stops": (5, "ended with status 2, saying: rebase: cannot do 0000002.dll: Device"),
    "killed": (0, "was killed by SIGKILL, saying: "),
    "hangs": (0, f"was killed after {SECONDS['hangs']}"),
}


@pytest.mark.parametrize("character", CHARACTERS)
def test_what_is_not_done_right_is_reported_and_left_as_it_was(
    engine: Callable[..., CygwinEngine],
    staged: list[Staged],
    tmp_path: Path,
    right: dict[str, bytes],
    character: str,
) -> None:
    done, words = CHARACTERS[character]
    before = bytes_of(staged)
    reasons = engine(character).relocate(staged)
    after = bytes_of(staged)
    for path in before:
        assert after[path] == (before if path in reasons else right)[path]
    assert len(reasons) == 7 - done
    assert not reasons or any(words in reason for reason in reasons.values()), reasons
    assert sorted(file.name for file in (tmp_path / "stage").iterdir()) == [
        f"{number}.dll" for number in range(7)
    ]


@pytest.mark.parametrize("character", CHARACTERS)
def test_the_second_engine_does_what_the_first_left(
    engine: Callable[..., CygwinEngine],
    staged: list[Staged],
    right: dict[str, bytes],
    character: str,
) -> None:
    warnings: list[str] = []
    fallback = engine(character, warnings.append)
    staged.sort(key=lambda item: item.new_base)
    assert fallback.relocate(staged[:3]) == {}
    assert fallback.relocate(staged[3:]) == {}
    for item in staged:
        check(item)
    assert bytes_of(staged) == right
    assert len(warnings) == (character not in ("obedient", "today")), warnings
    assert all(f"{character}/rebase" in warning for warning in warnings)
    assert fallback.version == {"idle": "unknown", "today": "4.6.6"}.get(character, "4.6.3")


def test_without_a_temporary_folder_the_second_engine_does_all(
    engine: Callable[..., CygwinEngine],
    staged: list[Staged],
    tmp_path: Path,
    right: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    warnings: list[str] = []
    assert engine("obedient", warnings.append).relocate(staged) == {}
    for item in staged:
        check(item)
    assert bytes_of(staged) == right
    assert len(warnings) == 1
    assert "rebase -V could not be started: No such file or directory" in warnings[0]


@pytest.mark.parametrize("before", [0, 0xDEAD])
@pytest.mark.parametrize("character", ["obedient", "today"])
def test_the_checksum_is_right_whatever_it_was_and_whoever_moved(
    engine: Callable[..., CygwinEngine], stage: Stage, tmp_path: Path, character: str, before: int
) -> None:
    data = bytearray(pe.build())
    data[pe.checksum_field(data)] = before.to_bytes(4, "little")
    (tmp_path / "x.dll").write_bytes(data)
    for number, new_base in enumerate((BASE, image_of(tmp_path / "x.dll").base)):
        item = stage(tmp_path / "x.dll", new_base, name=f"{number}.dll")
        assert engine(character).relocate([item]) == {}
        assert Path(item.path).read_bytes() == pe.model(bytes(data), item.image, new_base, True)


def test_the_programs_get_files_that_nobody_has_open(
    engine: Callable[..., CygwinEngine], staged: list[Staged], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cygwin's rebase opens a file without sharing it for writing, so it must be closed here."""
    call = Programs.rebase
    calls = []

    def watched(self: Programs, base: int, files: Sequence[str], **words: Any) -> Outcome:
        names = {os.path.join(words["cwd"], name) for name in files}
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                assert os.readlink(link) not in names
        calls.append(names)
        return call(self, base, files, **words)

    monkeypatch.setattr(Programs, "rebase", watched)
    assert engine("obedient").relocate(staged) == {}
    assert calls


def test_a_fork_that_fails_ends_the_programs_for_good(
    engine: Callable[..., CygwinEngine],
    staged: list[Staged],
    right: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    fallback = engine("obedient", warnings.append)
    assert fallback.relocate(staged[:2]) == {}
    started = []

    def fail(words: list[str], **_: object) -> None:
        started.append(words)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    assert fallback.relocate(staged[2:5]) == {}
    assert fallback.relocate(staged[5:]) == {}
    for item in staged:
        check(item)
    assert bytes_of(staged) == right
    assert len(started) == 1
    assert len(warnings) == 1
    assert "could not be started: Resource temporarily unavailable" in warnings[0]
    assert "all DLLs from here on are moved by the engine builtin" in warnings[0]


def test_a_program_that_vanished_is_named(staged: list[Staged], tmp_path: Path) -> None:
    before = bytes_of(staged)
    programs = Programs(str(tmp_path / "rebase"), str(tmp_path / "peflags"))
    reasons = CygwinEngine(programs).relocate(staged)
    assert len(reasons) == 7
    assert all(f"{tmp_path}/rebase -V could not be started" in r for r in reasons.values())
    assert bytes_of(staged) == before


def test_a_flag_alone_is_cleared(
    engine: Callable[..., CygwinEngine], staged: list[Staged], tmp_path: Path
) -> None:
    item = staged[0]._replace(new_base=staged[0].image.base)
    right = expected(item, tmp_path)
    assert engine("obedient").relocate([item]) == {}
    assert Path(item.path).read_bytes() == right
    assert engine("liar").relocate([staged[1]])
    assert engine("obedient").relocate([]) == {}


def test_mode_is_kept(engine: Callable[..., CygwinEngine], staged: list[Staged]) -> None:
    Path(staged[0].path).chmod(0o751)
    inode = Path(staged[0].path).stat().st_ino
    assert engine("obedient").relocate(staged[:1]) == {}
    after = Path(staged[0].path).stat()
    assert (after.st_mode & 0o7777, after.st_ino) == (0o751, inode)


def test_what_rebase_would_damage_it_never_gets(staged: list[Staged]) -> None:
    image = staged[0].image
    address, size = image.relocations
    assert cannot_move(image) is None
    assert "byte 200" in str(cannot_move(image._replace(header_offset=200)))
    decoy = Section(b".reloc2", 0x90000, 16, 0x400, 16)
    table = "relocation table"
    assert table in str(cannot_move(image._replace(sections=(decoy, *image.sections))))
    assert cannot_move(image._replace(sections=(*image.sections, decoy))) is None
    assert table in str(cannot_move(image._replace(relocations=(address, size + 0x10000))))
    assert table in str(cannot_move(image._replace(relocations=(0, 0))))
    for name in (b".text", b"\0.reloc"):  # rebase reads a name up to its first NUL
        renamed = tuple(section._replace(name=name) for section in image.sections)
        assert table in str(cannot_move(image._replace(sections=renamed)))


def test_a_folder_that_windows_does_not_let_go_yet_costs_nothing(
    engine: Callable[..., CygwinEngine],
    staged: list[Staged],
    right: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All is done by then: the second engine found moved copies, and took them for changed ones."""
    warnings: list[str] = []

    def busy(path: object, **words: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "rmdir", busy)
    assert engine("today", warnings.append).relocate(staged) == {}
    assert bytes_of(staged) == right
    assert warnings == []
