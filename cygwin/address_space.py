"""Where Windows and Cygwin want images to lie."""

from __future__ import annotations

from cygwin.values import NamedTuple

# Windows reserves address space in units of 64 KiB (SYSTEM_INFO.dwAllocationGranularity).
GRANULARITY = 0x10000

# PE/COFF specification, "Machine Types".
I386 = 0x14C
X86_64 = 0x8664
ARM64 = 0xAA64


class Range(NamedTuple):
    """The half-open range of addresses `[low, high)`, in bytes."""

    low: int
    high: int


# Where rebased DLLs live. x86_64: winsup/cygwin/local_includes/memory_layout.h; Cygwin's rebase
# refuses the floor 0x2_0000_0000 itself. i386: rebaseall fills downward from 0x7000_0000, and
# Windows 10 since 1703 moves DLLs below 0x3800_0000 at run time.
ARENA = {X86_64: Range(0x2_0001_0000, 0x4_0000_0000), I386: Range(0x3800_0000, 0x7000_0000)}

# What the runtime itself takes, to be kept free. x86_64: the 2 GiB window that Cygwin's rebase
# keeps free. i386: cygwin1.dll and most msys-2.0.dll lie at 0x6100_0000, the msys-2.0.dll of Git
# for Windows at 0x6400_0000; 16 MiB on either side of each, because old versions put their shared
# memory just below the DLL and let their own heap grow above it, and sizes differ by version.
RUNTIME = {
    X86_64: (Range(0x1_8000_0000, 0x2_0000_0000),),
    I386: (Range(0x6000_0000, 0x6200_0000), Range(0x6300_0000, 0x6500_0000)),
}

# Where an image does not disturb fork: rebased DLLs, and above them those that ld's
# --enable-auto-image-base places. Below lie programs and the runtime; at and above 0x6_0000_0000
# thread stacks, or the heap of older versions (memory_layout.h).
SAFE = {X86_64: Range(0x2_0000_0000, 0x6_0000_0000)}


def slot_size(size_of_image: int) -> int:
    """Return the bytes of address space that an image of `size_of_image` bytes occupies."""
    return -(-size_of_image // GRANULARITY) * GRANULARITY


def machine_name(machine: int) -> str:
    """Return the name of a machine type, or its number in hex when it has none here."""
    names = {I386: "i386", X86_64: "x86_64", ARM64: "arm64"}
    return names.get(machine, f"0x{machine:x}")


def is_runtime(file_name: str) -> bool:
    """Return whether this is the Cygwin or MSYS2 runtime, by the last part of its path.

    The runtime (and cyglsa, its part in the Windows logon service) is never rebased: programs
    share memory at addresses that are relative to it.
    """
    name = file_name.rpartition("/")[2].lower()
    is_part = name.startswith("cyglsa") and name.endswith(".dll")
    return is_part or name in ("cygwin1.dll", "msys-2.0.dll")
