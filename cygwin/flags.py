"""The flags of PE headers, under the names that Cygwin's peflags gives them."""

from __future__ import annotations

import os
from collections.abc import Collection

from cygwin.address_space import ARM64
from cygwin.fault import ImageError
from cygwin.image import DYNAMIC_BASE, Image
from cygwin.relocation import checksum, sum_file, sum_words
from cygwin.values import NamedTuple


class Flag(NamedTuple):
    """One bit of the flags as `image_flags` has them."""

    name: str
    letter: str  # of peflags' short option; none: peflags only shows it
    bit: int
    text: str = ""


# PE/COFF specification, "Characteristics" and "DLL Characteristics"; names, letters and order are
# those of peflags 4.6.3.
FLAGS = (
    Flag("relocs_stripped", "", 0x0001),
    Flag("executable_image", "", 0x0002),
    Flag("line_nums_stripped", "", 0x0004),
    Flag("local_syms_stripped", "", 0x0008),
    Flag("wstrim", "w", 0x0010, "the working set is trimmed aggressively"),
    Flag("bigaddr", "l", 0x0020, "it can handle addresses above 2 GiB"),
    Flag("32bit_machine", "", 0x0100),
    Flag("sepdbg", "S", 0x0200, "its debugging information is in another file"),
    Flag("dll", "", 0x2000),
    Flag("high-entropy-va", "e", 0x0020 << 16, "64-bit address space randomization"),
    Flag("dynamicbase", "d", 0x0040 << 16, "Windows may load it anywhere (ASLR)"),
    Flag("forceinteg", "f", 0x0080 << 16, "code integrity checks are enforced"),
    Flag("nxcompat", "n", 0x0100 << 16, "data execution prevention (DEP)"),
    Flag("no-isolation", "i", 0x0200 << 16, "no side-by-side isolation"),
    Flag("no-seh", "s", 0x0400 << 16, "no structured exception handling"),
    Flag("no-bind", "b", 0x0800 << 16, "must not be bound"),
    Flag("wdmdriver", "W", 0x2000 << 16, "a driver of the WDM model"),
    Flag("control-flow-guard", "c", 0x4000 << 16, "Control Flow Guard"),
    Flag("tsaware", "t", 0x8000 << 16, "Terminal Server aware"),
)


def image_flags(image: Image) -> int:
    """Return the flags of an image: Characteristics, and 16 bits higher DllCharacteristics."""
    return image.characteristics | image.dll_characteristics << 16


def change_flags(descriptor: int, image: Image, wanted: int) -> None:
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
    if image.machine == ARM64 and now & ~wanted & DYNAMIC_BASE << 16:
        raise ImageError("Windows loads no ARM64 image without dynamicbase")
    total, length = sum_file(descriptor), os.fstat(descriptor).st_size
    start = image.header_offset + 22  # of Characteristics ("COFF File Header")
    field = image.checksum_offset - start
    old = os.pread(descriptor, image.flags_offset + 2 - start, start)
    new = bytearray(old)
    fields = wanted.to_bytes(4, "little")
    new[:2], new[-2:] = fields[:2], fields[2:]
    new[field : field + 4] = bytes(4)
    right = checksum(total - sum_words(old, start) + sum_words(new, start), length)
    new[field : field + 4] = right.to_bytes(4, "little")
    os.pwrite(descriptor, new, start)
    os.fsync(descriptor)


def describe(before: int, after: int, shown: Collection[Flag], *, verbose: bool) -> str:
    """Return the flags as peflags prints them, `coff(0x2026) pe(0x0160[+dynamicbase]) `.

    `shown` are named with their sign, set or not; `verbose` names all that were set. A field that
    was changed is shown as it was and as it is.
    """
    text = ""
    for field, shift in (("coff", 0), ("pe", 16)):
        mask = 0xFFFF << shift
        here = [flag for flag in FLAGS if flag.bit & mask]
        here = [flag for flag in here if flag in shown or (verbose and before & flag.bit)]
        was, now = (_field((flags & mask) >> shift, flags, here) for flags in (before, after))
        text += f"{field}({was if was == now else f'{was}==>{now}'}) "
    return text


def _field(value: int, flags: int, named: Collection[Flag]) -> str:
    names = ",".join(("+" if flags & flag.bit else "-") + flag.name for flag in named)
    return f"0x{value:04x}[{names}]" if names else f"0x{value:04x}"
