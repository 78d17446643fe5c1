"""The engine that has Cygwin's own `rebase` and `peflags` move the images."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

from cygwin.fault import RelocationError
from cygwin.image import Image, read_base
from cygwin.programs import Outcome, ProgramError, Programs
from cygwin.relocation import check_and_sum
from rebaser.apply.engines import Engine, Staged
from rebaser.errors import advice, suppress
from rebaser.files import copy_bytes
from rebaser.state.staging import ROOM

SECONDS_A_CALL = 60.0  # allowed for the start of a program …
BYTES_A_SECOND = 1 << 20  # … and for what it has to read and write
STRIKES = 3  # calls that got nothing done; then the programs are not called any more

_Named = tuple[str, Staged]  # a copy for the programs, by its name, and what it is a copy of


class CygwinEngine:
    """Moves staged copies by Cygwin's programs, and believes nothing that they say.

    The programs work on copies of their own, which nobody else has open (rebase shares no file that
    it writes) and whose names sort in the order of the slots (MSYS2's rebase sorts its files). What
    they did right is written into the staged copy, which else stays what it was. What they left is
    done by `fallback`, without a word where they are known not to be able to do it; else `warn` is
    told so, once, in the program's words.
    """

    name = "cygwin"
    starts_processes = True

    def __init__(
        self,
        programs: Programs,
        fallback: Engine | None = None,
        warn: Callable[[str], None] = lambda text: None,
        *,
        seconds_a_call: float = SECONDS_A_CALL,
    ) -> None:
        self.version: str | None = None
        self._programs = programs
        self._fallback, self._warn = fallback, warn
        self._seconds = seconds_a_call
        self._strikes, self._gave_up = 0, False
        self._trouble: str | None = None  # what first went wrong, in the program's own words
        self._warned = False

    def relocate(self, staged: Sequence[Staged]) -> Mapping[str, str]:
        """Move every copy that can be moved; return {path: reason} for the others."""
        reasons = {item.path: reason for item in staged if (reason := cannot_move(item.image))}
        able = [item for item in staged if item.path not in reasons]
        able.sort(key=lambda item: (item.image.machine, item.new_base))
        if able:
            reasons.update(self._relocate(able))
        if self._fallback is None or not reasons:
            return {path: f"{why}; --engine builtin does without" for path, why in reasons.items()}
        if self._trouble and not self._warned:
            self._warned = True
            left = "all DLLs from here on are" if self._gave_up else "what they left is"
            self._warn(
                f"Cygwin's programs failed, {left} moved by the engine {self._fallback.name}: "
                f"{self._trouble}"
            )
        return self._fallback.relocate([item for item in staged if item.path in reasons])

    def _relocate(self, items: Sequence[Staged]) -> dict[str, str]:
        try:
            if not self._gave_up:
                # It also shows whether they can be started at all.
                version = self.version or self._programs.version(timeout=self._seconds)
                self.version = version or "unknown"
                # Here, where there is room for the staged copies too.
                room = tempfile.mkdtemp(prefix=ROOM, dir=os.path.dirname(items[0].path))
                try:
                    return self._relocate_in(room, items)
                finally:
                    # What Windows does not let go yet (EBUSY) goes with the staging folder: all is
                    # done, and must not be done again by the other engine.
                    shutil.rmtree(room, ignore_errors=True)
        except ProgramError as error:
            self._give_up(error)
        except OSError as error:
            why = f"{error.strerror or error}): {advice(error)}"
            self._trouble = f"no copy could be made for Cygwin's programs ({why}"
        return {item.path: f"not tried: {self._trouble}" for item in items}

    def _relocate_in(self, room: str, items: Sequence[Staged]) -> dict[str, str]:
        copies = [(f"{number:07d}.dll", item) for number, item in enumerate(items)]
        for name, item in copies:
            with open(os.path.join(room, name), "xb", buffering=0) as file:
                copy_bytes(item.copy, file.fileno())
        last: dict[str, Outcome] = {}
        try:
            self._call_programs(room, copies, last)
        except ProgramError as error:
            self._give_up(error)
        reasons = {}
        for name, item in copies:
            if wrong := _take_over(os.path.join(room, name), item):
                told = f"{wrong}; {last[name]}" if name in last else f"not tried: {self._trouble}"
                reasons[item.path] = told
                self._trouble = self._trouble or told
        return reasons

    def _give_up(self, why: ProgramError | Outcome) -> None:
        self._gave_up = True
        self._trouble = self._trouble or str(why)

    def _call_programs(self, room: str, copies: Sequence[_Named], last: dict[str, Outcome]) -> None:
        """Have the programs move the copies: one call for adjacent slots, unless it stops halfway.

        `last` is told what became of the call that each was in. Programs that hang or crash, or
        keep getting nothing done, are given up. Raises ProgramError.
        """
        for run in adjacent([copy for copy in copies if copy[1].new_base != copy[1].image.base]):
            while run:
                names, first = [name for name, _ in run], run[0][1]
                outcome = self._programs.rebase(
                    first.new_base,
                    names,
                    machine=first.image.machine,
                    cwd=room,
                    timeout=self._allowed(run),
                )
                last.update(dict.fromkeys(names, outcome))
                done = _count_done(run, room)
                self._strikes += not done
                if outcome.status < 0 or self._strikes >= STRIKES:
                    self._give_up(outcome)
                    return
                # It stopped at the first that is not done: the next call leaves that one out.
                run = run[done + 1 :]
        flagged = [copy for copy in copies if copy[1].clear_dynamic_base]
        if flagged:
            names = [name for name, _ in flagged]
            timeout = self._allowed(flagged)
            outcome = self._programs.clear_dynamic_base(names, cwd=room, timeout=timeout)
            last.update((name, outcome) for name in names if name not in last)
            if outcome.status < 0:
                self._give_up(outcome)

    def _allowed(self, copies: Sequence[_Named]) -> float:
        size = sum(os.fstat(item.copy).st_size for _, item in copies)
        return self._seconds + size / BYTES_A_SECOND


def _take_over(made: str, item: Staged) -> str | None:
    """Compare what the programs made with the original, and write it into the staged copy.

    Return what is wrong; the staged copy is then what it was. What an older program does otherwise
    is put right: before 4.6.6 rebase sets the TimeDateStamp and leaves the CheckSum.
    """
    try:
        with open(made, "r+b", buffering=0) as file:
            copy, image, clear = file.fileno(), item.image, item.clear_dynamic_base
            os.pwrite(copy, image.timestamp.to_bytes(4, "little"), image.timestamp_offset)
            check_and_sum(item.source, copy, image, item.new_base, clear_dynamic_base=clear)
            copy_bytes(copy, item.copy)
    except RelocationError as error:
        return str(error)
    except OSError as error:
        return f"what was made of it cannot be taken over ({error.strerror or error})"
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
    named = [section for section in image.sections if b".reloc" in section.name.split(b"\0")[0]]
    if size and (not named or named[0].virtual_address != address or named[0].raw_size < size):
        return "Cygwin's rebase cannot do it: its relocation table is not its section .reloc"
    if not size and named:
        return "Cygwin's rebase cannot do it: its section .reloc is not its relocation table"
    return None


def adjacent(copies: Iterable[_Named]) -> list[list[_Named]]:
    """Return the runs of copies that go to adjacent slots, from copies sorted by slot."""
    runs: list[list[_Named]] = []
    end = None
    for copy in copies:
        slot = copy[1].image.machine, copy[1].new_base
        if slot != end:
            runs.append([])
        runs[-1].append(copy)
        end = slot[0], slot[1] + copy[1].image.slot_size
    return runs


def _count_done(run: Sequence[_Named], room: str) -> int:
    """Return how many images, from the first on, have the base that they were to get."""
    done = 0
    with suppress(OSError):
        for name, item in run:
            with open(os.path.join(room, name), "rb", buffering=0) as file:
                base = read_base(file.fileno(), item.image.base_offset, item.image.base_width)
            if base != item.new_base:
                break
            done += 1
    return done
