"""What Windows does to addresses by chance (ASLR): images are moved, heaps and stacks spread."""

from __future__ import annotations

import os


def mandatory_aslr(registry: str = "/proc/registry") -> bool | None:
    """Return whether Mandatory ASLR is on for the whole system; None: it cannot be told here.

    Then Windows moves every image however it was linked, and no rebase helps. Cygwin shows the
    registry as files. Bits 8 and 9 of the value are the policy "force relocate images" (winbase.h,
    PROCESS_CREATION_MITIGATION_POLICY_FORCE_RELOCATE_IMAGES): 1 and 3 are on. A system on which
    nothing was ever set has no such value.
    """
    kernel = "HKEY_LOCAL_MACHINE/SYSTEM/CurrentControlSet/Control/Session Manager/kernel"
    try:
        with open(f"{registry}/{kernel}/MitigationOptions", "rb") as file:
            data = file.read(2)
    except FileNotFoundError:
        return False if os.path.isdir(f"{registry}/{kernel}") else None
    except OSError:
        return None
    return len(data) == 2 and data[1] & 1 == 1


def forks_with_high_entropy(descriptor: int) -> bool:
    """Return whether an open file, which is closed, is a program that forks with HIGH_ENTROPY_VA.

    Its heap and stacks may take any address then. Those of Cygwin and MSYS2 fork: their import
    tables name the runtime. Only these fields of the headers are read (PE/COFF specification,
    "Signature", "DLL Characteristics"): what else an image is takes thirty times as long.
    """
    with open(descriptor, "rb") as program:
        program.seek(60)  # e_lfanew
        program.seek(int.from_bytes(program.read(4), "little"))
        header = program.read(96)
        if header[:4] != b"PE\0\0" or not int.from_bytes(header[94:], "little") & 0x20:
            return False
        import re

        program.seek(0)
        return bool(re.search(rb"(?i)cygwin1\.dll|msys-2\.0\.dll", program.read(1 << 28)))
