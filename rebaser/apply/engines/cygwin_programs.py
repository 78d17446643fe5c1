"""The engine that has Cygwin's own `rebase` and `peflags` move the images."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cygwin.errors import RelocationError
from cygwin.image import Image, read_base
from cygwin.programs import Outcome, ProgramError, Programs
from cygwin.relocation import check_relocated
from rebaser.apply.engines import Staged

SECONDS_A_CALL = 60.0  # allowed for the start of a program …
BYTES_A_SECOND = 1 << 20  # … and for what it has to read and write
PORTION = 256 << 20  # bytes of files that are copied for the programs at a time
WINDOW = 1 << 20  # bytes that are copied at a time
STRIKES = 3  # calls that got nothing done; then the programs are not called any more


@dataclass(frozen=True)
class _Copy:
    """One image under work: the staged copy, and a copy of that for the programs."""

    staged: Staged
    name: str

    @property
    def moves(self) -> bool:
        return self.staged.new_base != self.staged.image.base

    @property
    def end(self) -> int:
        return self.staged.new_base + self.staged.image.slot_size


class CygwinEngine:
    """Moves staged copies by Cygwin's programs, and believes nothing that they say.

    The programs work on copies of their own, whose names sort in the order of the slots (MSYS2's
    `rebase` sorts its files). A copy that they did not do right is thrown away, and the staged
    copy is then what it was. `trouble` is what first went wrong with a program, in its own words;
    `gave_up` says that the programs are not called any more.
    """

    name = "cygwin"
    starts_processes = True

    def __init__(self, programs: Programs, *, seconds_a_call: float = SECONDS_A_CALL) -> None:
        self.version: str | None = None
        self.trouble: str | None = None
        self.gave_up = False
        self._programs = programs
        self._seconds = seconds_a_call
        self._strikes = 0

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy that the programs can move; return {staged: reason} for the others."""
        reasons: dict[str, str] = {}
        able = []
        for item in staged:
            reason = cannot_move(item.image)
            if reason is None:
                able.append(item)
            else:
                reasons[item.staged] = reason
        for portion in _portions(able):
            reasons.update(self._relocate_in(os.path.dirname(portion[0].staged), portion))
        return reasons

    def _relocate_in(self, folder: str, items: Sequence[Staged]) -> dict[str, str]:
        self._ask_version()
        if self.gave_up:
            return {item.staged: self._why() for item in items}
        room = None
        try:
            # Here, not in the system's temporary folder: the copies replace the staged ones.
            room = tempfile.mkdtemp(prefix="cygwin-", dir=folder)
            copies = [_Copy(item, f"{number:07d}.dll") for number, item in enumerate(items)]
            for copy in copies:
                shutil.copy(copy.staged.staged, os.path.join(room, copy.name))
            return self._relocate_copies(copies, room)
        except OSError as error:
            reason = f"no copy could be made for Cygwin's programs: {error.strerror}"
            return {item.staged: reason for item in items}
        finally:
            if room is not None:
                shutil.rmtree(room, ignore_errors=True)

    def _relocate_copies(self, copies: Sequence[_Copy], room: str) -> dict[str, str]:
        last: dict[str, Outcome] = {}
        for run in adjacent([copy for copy in copies if copy.moves]):
            self._rebase(run, room, last)
        self._clear_flags([copy for copy in copies if copy.staged.clear_dynamic_base], room, last)
        reasons = {}
        for copy in copies:
            reason = _finish(copy, room)
            if reason is not None:
                called = last.get(copy.name)
                reason = self._why() if called is None else f"{reason}; {called}"
                reasons[copy.staged.staged] = reason
                self.trouble = self.trouble or reason
        return reasons

    def _why(self) -> str:
        return f"not tried: {self.trouble}"

    def _ask_version(self) -> None:
        """Ask the programs' version, once; it also shows whether they can be started at all."""
        if self.version is None and not self.gave_up:
            try:
                self.version = self._programs.version(timeout=self._seconds) or "unknown"
            except ProgramError as error:
                self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        self.gave_up = True
        self.trouble = self.trouble or why

    def _rebase(self, run: Sequence[_Copy], room: str, last: dict[str, Outcome]) -> None:
        """Move a run of adjacent slots, in one call unless the program stops on the way."""
        while run and not self.gave_up:
            try:
                outcome = self._programs.rebase(
                    run[0].staged.new_base,
                    [copy.name for copy in run],
                    machine=run[0].staged.image.machine,
                    cwd=room,
                    timeout=self._allowed(run),
                )
            except ProgramError as error:
                self._give_up(str(error))
                return
            last.update((copy.name, outcome) for copy in run)
            done = _count_done(run, room)
            self._judge(outcome, progress=done > 0)
            # It stopped at the first that is not done: the next call leaves that one out.
            run = run[done + 1 :]

    def _clear_flags(self, copies: Sequence[_Copy], room: str, last: dict[str, Outcome]) -> None:
        if not copies or self.gave_up:
            return
        try:
            outcome = self._programs.clear_dynamic_base(
                [copy.name for copy in copies], cwd=room, timeout=self._allowed(copies)
            )
        except ProgramError as error:
            self._give_up(str(error))
            return
        for copy in copies:
            last.setdefault(copy.name, outcome)
        self._judge(outcome, progress=True)

    def _allowed(self, copies: Sequence[_Copy]) -> float:
        size = sum(os.path.getsize(copy.staged.staged) for copy in copies)
        return self._seconds + size / BYTES_A_SECOND

    def _judge(self, outcome: Outcome, *, progress: bool) -> None:
        """Give up on programs that hang or crash, and on those that keep getting nothing done."""
        self._strikes += not progress
        if outcome.status < 0 or self._strikes >= STRIKES:
            self._give_up(str(outcome))


def _finish(copy: _Copy, room: str) -> str | None:
    """Put back the TimeDateStamp, compare with the original, and write it over the staged copy.

    Return what is wrong; the staged copy is then what it was.
    """
    item, made = copy.staged, os.path.join(room, copy.name)
    try:
        with open(made, "r+b", buffering=0) as after:
            stamp = item.image.timestamp.to_bytes(4, "little")
            os.pwrite(after.fileno(), stamp, item.image.timestamp_offset)
            check_relocated(
                item.source,
                after.fileno(),
                item.image,
                item.new_base,
                clear_dynamic_base=item.clear_dynamic_base,
            )
            at = 0
            while window := os.pread(after.fileno(), WINDOW, at):
                at += os.pwrite(item.copy, window, at)
    except RelocationError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read again: {error.strerror}"
    return None


def cannot_move(image: Image) -> str | None:
    """Return why Cygwin's `rebase` would damage or skip this image, or None when it can move it.

    It reads the flag "relocations stripped" at the fixed offset 0x96, right only where the PE
    header begins at byte 0x80, and takes the first section whose name contains `.reloc` for the
    relocation table, whatever data directory 5 says.
    """
    if image.header_offset != 0x80:
        return f"Cygwin's rebase cannot do it: its PE header begins at byte {image.header_offset}"
    address, size = image.relocations
    named = [section for section in image.sections if b".reloc" in section.name]
    if size and (not named or named[0].virtual_address != address or named[0].raw_size < size):
        return "Cygwin's rebase cannot do it: its relocation table is not its section .reloc"
    if not size and named:
        return "Cygwin's rebase cannot do it: its section .reloc is not its relocation table"
    return None


def _folder_and_slot(item: Staged) -> tuple[str, int, int]:
    return os.path.dirname(item.staged), item.image.machine, item.new_base


def _portions(items: Sequence[Staged]) -> Iterator[list[Staged]]:
    """Yield the items by folder and slot, in portions of at most PORTION bytes of files."""
    portion: list[Staged] = []
    size = 0
    for item in sorted(items, key=_folder_and_slot):
        length = os.path.getsize(item.staged)
        same = portion and _folder_and_slot(item)[0] == _folder_and_slot(portion[0])[0]
        if portion and not (same and size + length <= PORTION):
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += length
    if portion:
        yield portion


def adjacent(copies: Sequence[_Copy]) -> Iterator[list[_Copy]]:
    """Yield the runs of copies that go to adjacent slots, from copies sorted by slot."""
    run: list[_Copy] = []
    for copy in copies:
        if run and (
            run[-1].end != copy.staged.new_base
            or run[-1].staged.image.machine != copy.staged.image.machine
        ):
            yield run
            run = []
        run.append(copy)
    if run:
        yield run


def _count_done(run: Sequence[_Copy], room: str) -> int:
    """Return how many images, from the first on, have the base that they were to get."""
    for count, copy in enumerate(run):
        image = copy.staged.image
        try:
            with open(os.path.join(room, copy.name), "rb", buffering=0) as file:
                base = read_base(file.fileno(), image.base_offset, image.base_width)
        except OSError:
            return count
        if base != copy.staged.new_base:
            return count
    return len(run)
