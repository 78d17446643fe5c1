"""Mandatory ASLR: whether Windows moves every image however it was linked; no rebase helps then."""

from __future__ import annotations

import os

_MITIGATIONS = (
    "HKEY_LOCAL_MACHINE/SYSTEM/CurrentControlSet/Control/Session Manager/kernel/MitigationOptions"
)


def mandatory_aslr(registry: str = "/proc/registry") -> bool | None:
    """Return whether Mandatory ASLR is on for the whole system; None: it cannot be told here.

    Cygwin shows the registry as files. Bits 8 and 9 of the value are the policy "force relocate
    images" (winbase.h, PROCESS_CREATION_MITIGATION_POLICY_FORCE_RELOCATE_IMAGES): 1 and 3 are on.
    A system on which nothing was ever set has no such value.
    """
    value = f"{registry}/{_MITIGATIONS}"
    try:
        with open(value, "rb") as file:
            data = file.read(2)
    except FileNotFoundError:
        return False if os.path.isdir(os.path.dirname(value)) else None
    except OSError:
        return None
    return len(data) == 2 and data[1] & 1 == 1
