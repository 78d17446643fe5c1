"""What can be wrong with an image, or with a file that should be one, and how it is raised."""

from __future__ import annotations

from cygwin.values import Enum

_INSTALL = "install it again"


class Fault(Enum):
    """Why an image must not be moved, or a file is no image.

    `number` is kept in files, `sentence` says it, `advice` what to do about it ("": nothing).
    """

    EMPTY = 1, "empty", _INSTALL
    NO_IMAGE = 2, "not a PE image", ""
    TRUNCATED = 3, "truncated or still being written", _INSTALL
    DAMAGED = 4, "damaged", _INSTALL
    UNKNOWN_MACHINE = 5, "for an unknown machine", ""
    SMALL_ALIGNMENT = (
        6,
        "its sections are aligned to less than a page",
        "link it again with --section-alignment 0x1000",
    )
    NOT_A_DLL = 7, "not a DLL", ""
    ARM64 = 8, "ARM64: Windows loads it anywhere, whatever its base", ""
    STRIPPED = (
        9,
        "its relocations were stripped",
        "link it again without --disable-reloc-section or /FIXED",
    )
    LOW = (
        10,
        "based below 4 GiB, where its linker needs it",
        "link it again with an image base above 0x200000000 if what it is linked to allows that, "
        "else leave it",
    )
    NET_ONLY = 11, ".NET only, which minds no base", ""
    RELOCATIONS_DAMAGED = 12, "its relocation table is damaged", _INSTALL
    RELOCATION_TYPE_UNKNOWN = 13, "relocation of unknown type", "link it again with another linker"

    def __init__(self, number: int, sentence: str, advice: str) -> None:
        self.number = number
        self.sentence = sentence
        self.advice = advice

    def reason(self, detail: str) -> str:
        """Return the sentence with what is special about this file, if anything is."""
        return f"{self.sentence}: {detail}" if detail else self.sentence


FAULTS = {fault.number: fault for fault in Fault}


class ImageError(Exception):
    """A file could not be read or changed as an image; the text is one short reason."""


class RelocationError(ImageError):
    """An image could not be relocated, or is not what relocating must have made of it."""


class FaultError(RelocationError):
    """What is wrong, as a value; `detail` is printable ASCII, or empty."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault.reason(detail))
        self.fault = fault
        self.detail = detail


class NotAnImage(FaultError):  # noqa: N818 - it says what the file is, not that we failed
    """The file has no usable PE header, so it has no address range either."""
