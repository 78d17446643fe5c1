"""The flags of PE headers, under the names that Cygwin's peflags gives them."""

from __future__ import annotations

import os
from collections.abc import Collection

from cygwin.address_space import ARM64
from cygwin.checksum import WIDTH, checksum, sum_file, sum_words
from cygwin.fault import ImageError
from cygwin.image import DYNAMIC_BASE, Image
from cygwin.named_tuple import NamedTuple

# The Characteristics field, from the PE signature: PE/COFF specification, "COFF File Header".
CHARACTERISTICS = 22


class Flag(NamedTuple):
    """One bit of Characteristics (`coff`) or of DllCharacteristics."""

    name: str
    letter: str  # of peflags' short option; none: peflags only shows it
    coff: bool
    bit: int
    text: str = ""


class Flags(NamedTuple):
    """The two fields of an image that hold flags, as numbers."""

    coff: int
    pe: int

    def has(self, flag: Flag) -> bool:
        """Return whether `flag` is set."""
        return bool((self.coff if flag.coff else self.pe) & flag.bit)

    def but(self, flag: Flag, value: bool) -> Flags:
        """Return these flags with `flag` set or cleared."""
        coff, pe = (flag.bit, 0) if flag.coff else (0, flag.bit)
        if value:
            return Flags(self.coff | coff, self.pe | pe)
        return Flags(self.coff & ~coff, self.pe & ~pe)


# PE/COFF specification, "Characteristics" and "DLL Characteristics"; names, letters and order are
# those of peflags 4.6.3.
FLAGS = (
    Flag("relocs_stripped", "", True, 0x0001),
    Flag("executable_image", "", True, 0x0002),
    Flag("line_nums_stripped", "", True, 0x0004),
    Flag("local_syms_stripped", "", True, 0x0008),
    Flag("wstrim", "w", True, 0x0010, "the working set is trimmed aggressively"),
    Flag("bigaddr", "l", True, 0x0020, "it can handle addresses above 2 GiB"),
    Flag("32bit_machine", "", True, 0x0100),
    Flag("sepdbg", "S", True, 0x0200, "its debugging information is in another file"),
    Flag("dll", "", True, 0x2000),
    Flag("high-entropy-va", "e", False, 0x0020, "64-bit address space randomization"),
    Flag("dynamicbase", "d", False, 0x0040, "Windows may load it anywhere (ASLR)"),
    Flag("forceinteg", "f", False, 0x0080, "code integrity checks are enforced"),
    Flag("nxcompat", "n", False, 0x0100, "data execution prevention (DEP)"),
    Flag("no-isolation", "i", False, 0x0200, "no side-by-side isolation"),
    Flag("no-seh", "s", False, 0x0400, "no structured exception handling"),
    Flag("no-bind", "b", False, 0x0800, "must not be bound"),
    Flag("wdmdriver", "W", False, 0x2000, "a driver of the WDM model"),
    Flag("control-flow-guard", "c", False, 0x4000, "Control Flow Guard"),
    Flag("tsaware", "t", False, 0x8000, "Terminal Server aware"),
)


def image_flags(image: Image) -> Flags:
    """Return the flags of an image."""
    return Flags(image.characteristics, image.dll_characteristics)


def change_flags(descriptor: int, image: Image, wanted: Flags) -> None:
    """Write `wanted` into a file that is open for reading and writing and holds `image`.

    In place, as peflags does: the file keeps its inode, its hard links and its metadata. The
    CheckSum is right afterwards, whatever it was (peflags leaves a 0). Both go in one write of some
    70 bytes, so a kill finds old or new; should a power failure leave a CheckSum that is wrong, the
    file loads all the same: Windows looks at that of drivers and of what it starts up with. Returns
    when they are on the disk. Raises ImageError for what would harm: Windows loads no ARM64 image
    without DYNAMIC_BASE.
    """
    now = image_flags(image)
    if wanted == now:
        return
    if image.machine == ARM64 and now.pe & DYNAMIC_BASE and not wanted.pe & DYNAMIC_BASE:
        raise ImageError("Windows loads no ARM64 image without dynamicbase")
    total, length = sum_file(descriptor), os.fstat(descriptor).st_size
    start = image.header_offset + CHARACTERISTICS
    field = image.checksum_offset - start
    old = os.pread(descriptor, image.flags_offset + 2 - start, start)
    new = bytearray(old)
    new[:2], new[-2:] = wanted.coff.to_bytes(2, "little"), wanted.pe.to_bytes(2, "little")
    new[field : field + WIDTH] = bytes(WIDTH)
    right = checksum(total - sum_words(old, start) + sum_words(new, start), length)
    new[field : field + WIDTH] = right.to_bytes(WIDTH, "little")
    os.pwrite(descriptor, new, start)
    os.fsync(descriptor)


def describe(before: Flags, after: Flags, shown: Collection[Flag], *, verbose: bool) -> str:
    """Return the flags as peflags prints them, `coff(0x2026) pe(0x0160[+dynamicbase]) `.

    `shown` are named with their sign, set or not; `verbose` names all that were set. A field that
    was changed is shown as it was and as it is.
    """
    named = [flag for flag in FLAGS if flag in shown or (verbose and before.has(flag))]
    text = ""
    for field, coff in (("coff", True), ("pe", False)):
        here = [flag for flag in named if flag.coff == coff]
        old, new = (_field(flags, coff, here) for flags in (before, after))
        text += f"{field}({old if old == new else f'{old}==>{new}'}) "
    return text


def _field(flags: Flags, coff: bool, named: Collection[Flag]) -> str:
    value = f"0x{flags.coff if coff else flags.pe:04x}"
    names = ",".join(("+" if flags.has(flag) else "-") + flag.name for flag in named)
    return f"{value}[{names}]" if names else value
