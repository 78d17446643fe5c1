"""The engine that runs rebase and peflags: with programs of every character, and the real ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pe
import pytest
from cygwin_root import FAKE_PROGRAMS, CygwinRoot

from cygwin.image import Image, Section, read_image
from cygwin.programs import Programs
from cygwin.relocation import relocate
from rebaser.apply.engines import Staged
from rebaser.apply.engines.builtin import BuiltinEngine
from rebaser.apply.engines.cygwin_programs import CygwinEngine, cannot_move
from rebaser.apply.engines.fallback import FallbackEngine

GOLDEN = Path(__file__).resolve().parents[1] / "golden.json"
BASE = 0x2_0001_0000
GAP = 0x10000


def image_of(path: Path) -> Image:
    with path.open("rb") as file:
        return read_image(file.fileno(), path.stat().st_size)


def stage(path: Path, new_base: int, *, clear: bool = True) -> Staged:
    """Return a copy whose original is elsewhere; its descriptors live as long as the tests."""
    with tempfile.TemporaryFile() as original:
        original.write(path.read_bytes())
        original.flush()
        source = os.dup(original.fileno())
    copy = os.open(path, os.O_RDWR)
    return Staged(str(path), source, copy, image_of(path), new_base, clear)


def expected(item: Staged, folder: Path) -> bytes:
    """Return the bytes that the staged copy must have at the end."""
    copy = folder / "expected"
    shutil.copy(item.staged, copy)
    with copy.open("r+b") as file:
        relocate(
            file.fileno(), item.image, item.new_base, clear_dynamic_base=item.clear_dynamic_base
        )
    return copy.read_bytes()


@pytest.fixture
def staged(tmp_path: Path) -> list[Staged]:
    """Return seven copies for seven slots, adjacent but for one gap, in no order."""
    items, base = [], BASE
    (tmp_path / "stage").mkdir()
    for number in (5, 3, 6, 1, 0, 2, 4):
        path = tmp_path / "stage" / f"{number}.dll"
        path.write_bytes(pe.build(data_size=0x2000 + number * 0x6000))
        items.append(stage(path, base))
        base = items[-1].image.slot_size + base + (GAP if number == 6 else 0)
    return items[::2] + items[1::2]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], CygwinEngine]:
    """Return a function that makes an engine from the fake programs of a character."""
    here = str(Path(sys.executable).parent)  # whose Python has what the fakes need
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")

    def make(character: str) -> CygwinEngine:
        programs = Programs.find(str(FAKE_PROGRAMS / character))
        assert programs is not None
        return CygwinEngine(programs, seconds_a_call=2 if character == "hangs" else 60)

    return make


def bytes_of(staged: Sequence[Staged]) -> dict[str, bytes]:
    return {item.staged: Path(item.staged).read_bytes() for item in staged}


CHARACTERS = {
    # how many of the seven are done, and words that each reason has
    "obedient": (7, ""),
    "idle": (0, "rebase -8 -b 0x2000"),
    "liar": (0, "ended with status 0, saying: 0000000.dll: new base = 200010000"),
    "stops": (5, "ended with status 2, saying: rebase: cannot do 0000002.dll: Device"),
    "killed": (0, "was killed by SIGKILL, saying: "),
    "hangs": (0, "was killed after 2"),
}


@pytest.mark.parametrize("character", CHARACTERS)
def test_what_is_not_done_right_is_reported_and_left_as_it_was(
    engine: Callable[[str], CygwinEngine],
    staged: list[Staged],
    tmp_path: Path,
    character: str,
) -> None:
    done, words = CHARACTERS[character]
    before = bytes_of(staged)
    right = {item.staged: expected(item, tmp_path) for item in staged}
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
    engine: Callable[[str], CygwinEngine],
    staged: list[Staged],
    tmp_path: Path,
    character: str,
) -> None:
    right = {item.staged: expected(item, tmp_path) for item in staged}
    warnings: list[str] = []
    fallback = FallbackEngine(engine(character), BuiltinEngine(), warnings.append)
    staged.sort(key=lambda item: item.new_base)
    assert fallback.relocate(staged[:3]) == {}
    assert fallback.relocate(staged[3:]) == {}
    assert bytes_of(staged) == right
    assert len(warnings) == (character != "obedient"), warnings
    assert all(f"{character}/rebase" in warning for warning in warnings)
    assert fallback.version == ("unknown" if character == "idle" else "4.6.3")


def test_a_fork_that_fails_ends_the_programs_for_good(
    engine: Callable[[str], CygwinEngine],
    staged: list[Staged],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = {item.staged: expected(item, tmp_path) for item in staged}
    warnings: list[str] = []
    fallback = FallbackEngine(engine("obedient"), BuiltinEngine(), warnings.append)
    assert fallback.relocate(staged[:2]) == {}
    started = []

    def fail(words: list[str], **_: object) -> None:
        started.append(words)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    assert fallback.relocate(staged[2:5]) == {}
    assert fallback.relocate(staged[5:]) == {}
    assert bytes_of(staged) == right
    assert len(started) == 1
    assert len(warnings) == 1
    assert "could not be started: Resource temporarily unavailable" in warnings[0]
    assert "all images from here on are moved by the engine builtin" in warnings[0]


def test_a_program_that_vanished_is_named(staged: list[Staged], tmp_path: Path) -> None:
    before = bytes_of(staged)
    programs = Programs(str(tmp_path / "rebase"), str(tmp_path / "peflags"))
    reasons = CygwinEngine(programs).relocate(staged)
    assert len(reasons) == 7
    assert all(f"{tmp_path}/rebase -V could not be started" in r for r in reasons.values())
    assert bytes_of(staged) == before


def test_a_flag_alone_is_cleared(
    engine: Callable[[str], CygwinEngine], staged: list[Staged], tmp_path: Path
) -> None:
    item = replace(staged[0], new_base=staged[0].image.base)
    right = expected(item, tmp_path)
    assert engine("obedient").relocate([item]) == {}
    assert Path(item.staged).read_bytes() == right
    assert engine("liar").relocate([stage(Path(item.staged), BASE)])
    assert engine("obedient").relocate([]) == {}


def test_mode_is_kept(engine: Callable[[str], CygwinEngine], staged: list[Staged]) -> None:
    Path(staged[0].staged).chmod(0o751)
    assert engine("obedient").relocate(staged[:1]) == {}
    assert Path(staged[0].staged).stat().st_mode & 0o7777 == 0o751


def test_what_rebase_would_damage_it_never_gets(staged: list[Staged]) -> None:
    image = staged[0].image
    address, size = image.relocations
    assert cannot_move(image) is None
    assert "byte 200" in str(cannot_move(replace(image, header_offset=200)))
    decoy = Section(b".reloc2", 0x90000, 16, 0x400, 16)
    table = "relocation table"
    assert table in str(cannot_move(replace(image, sections=(decoy, *image.sections))))
    assert cannot_move(replace(image, sections=(*image.sections, decoy))) is None
    assert table in str(cannot_move(replace(image, relocations=(address, size + 0x10000))))
    assert table in str(cannot_move(replace(image, relocations=(0, 0))))
    renamed = tuple(replace(section, name=b".text") for section in image.sections)
    assert table in str(cannot_move(replace(image, sections=renamed)))


@pytest.mark.cygwin
@pytest.mark.skipif(not GOLDEN.exists(), reason="golden.json is not there")
def test_the_real_rebase_makes_the_golden_files(
    pristine_root: CygwinRoot, real_programs: str, tmp_path: Path
) -> None:
    programs = Programs.find()
    assert programs is not None
    vectors = {}
    for vector in json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]:
        path = tmp_path / f"{vector['id']}.dll"
        shutil.copy(pristine_root.path / vector["file"], path)
        vectors[str(path)] = vector
    staged = [
        stage(Path(path), int(vector["base_after"], 16), clear=False)
        for path, vector in vectors.items()
    ]
    assert CygwinEngine(programs).relocate(staged) == {}
    for item in staged:
        vector, data = vectors[item.staged], bytearray(Path(item.staged).read_bytes())
        if vector["timestamp"] is not None:
            at = item.image.timestamp_offset
            data[at : at + 4] = vector["timestamp"].to_bytes(4, "little")
        assert hashlib.sha256(data).hexdigest() == vector["sha256_after"], vector["id"]


@pytest.mark.cygwin
@pytest.mark.slow
def test_both_engines_make_the_same_of_every_real_dll(
    pristine_root: CygwinRoot, real_programs: str, tmp_path: Path
) -> None:
    programs = Programs.find()
    assert programs is not None
    staged, base = [], BASE
    for number, file in enumerate(pristine_root.dlls()):
        path = tmp_path / f"{number:07d}.dll"
        shutil.copy(file, path)
        staged.append(stage(path, base))
        base = staged[-1].image.slot_size + base + (GAP if number % 50 == 0 else 0)
    right = {item.staged: expected(item, tmp_path) for item in staged}
    engine = CygwinEngine(programs)
    assert engine.relocate(staged) == {}
    assert engine.version == "4.6.3"
    assert bytes_of(staged) == right
