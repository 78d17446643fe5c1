"""What an image is, and why it must not be moved: the only reader of PE headers."""

from __future__ import annotations

import os
import struct
from typing import Any

from cygwin.address_space import ARM64, GRANULARITY, I386, X86_64, machine_name, slot_size
from cygwin.fault import Fault, FaultError, NotAnImage
from cygwin.relocation_table import PAGE, Block, Reader, Section, read_blocks
from cygwin.values import NamedTuple

# PE/COFF specification, "Characteristics", "DLL Characteristics", "Optional Header Data
# Directories".
RELOCS_STRIPPED = 0x0001
DLL = 0x2000
DYNAMIC_BASE = 0x0040
CERTIFICATE_TABLE = 4
BASE_RELOCATION_TABLE = 5
CLR_HEADER = 14
DIRECTORIES = 16

PE32 = 0x10B
PE32_PLUS = 0x20B
# The bytes of an ImageBase field and of a relocated word.
MACHINE_WIDTH = {I386: 4, X86_64: 8, ARM64: 8}
# The optional header up to the data directories, in bytes ("Optional Header").
SHORTEST_OPTIONAL_HEADER = {PE32: 96, PE32_PLUS: 112}

DOS_HEADER_SIZE = 64
FILE_HEADER_SIZE = 24  # with the signature before it
# Name, VirtualSize, VirtualAddress, SizeOfRawData, PointerToRawData ("Section Table").
SECTION_HEADER = struct.Struct("<8s4I16x")
SYMBOL_SIZE = 18
# Windows maps sections from a multiple of this, whatever PointerToRawData says.
SECTOR = 512

FOUR_GIB = 0x1_0000_0000
# "Optional Header": PE32+ too limits "the image size to 2 gigabytes".
LARGEST_IMAGE = 0x8000_0000
# One read of this many bytes holds the headers of nearly every image; they all have to begin
# in the first MAX_HEADER_OFFSET bytes (linkers' DOS stubs take 64 to some hundred bytes).
FIRST_READ = 0x1000
MAX_HEADER_OFFSET = 0x10000


class Image(NamedTuple):
    """A PE file as it was read; sizes in bytes, offsets in bytes from the start of the file."""

    machine: int
    base: int
    size: int  # SizeOfImage
    characteristics: int
    dll_characteristics: int
    timestamp: int
    header_offset: int  # e_lfanew: of the PE signature
    base_offset: int  # of the ImageBase field
    base_width: int  # bytes of the ImageBase field and of each relocated word: 8 or 4
    flags_offset: int  # of the DllCharacteristics field, 2 bytes
    timestamp_offset: int  # of the TimeDateStamp field, 4 bytes
    sections: tuple[Section, ...]
    relocations: tuple[int, int]  # RVA and size of data directory 5
    blocks: tuple[Block, ...]  # of a sound relocation table, in the order of the file
    signed: bool  # has an Authenticode signature, which moving would break
    fault: Fault | None = None  # why it must not be moved; None: it can be
    detail: str = ""  # what is special about the fault, in printable ASCII

    @property
    def is_dll(self) -> bool:
        """Whether the image says that it is a DLL."""
        return bool(self.characteristics & DLL)

    @property
    def checksum_offset(self) -> int:
        """Where the CheckSum field lies, 4 bytes ("Optional Header": at 64, the flags at 70)."""
        return self.flags_offset - 6

    @property
    def slot_size(self) -> int:
        """Bytes of address space that it occupies: its size rounded up to 64 KiB."""
        return slot_size(self.size)

    def without_marks(self) -> Image:
        """Return the image without what takes most memory: its words are then found again."""
        return self._replace(blocks=tuple(block._replace(marks=None) for block in self.blocks))


def read_base(descriptor: int, base_offset: int, base_width: int) -> int:
    """Return the ImageBase that the file has now; an end of the file reads as zeros."""
    return int.from_bytes(os.pread(descriptor, base_width, base_offset), "little")


def read_image(descriptor: int, length: int) -> Image:
    """Read the image in a file of `length` bytes, its relocation table included.

    Raises NotAnImage when there is no usable PE header. What is wrong with an image that has one is
    its `fault`. Of the file only the headers and the relocation table are read.
    """
    reader = Reader(descriptor, FIRST_READ)
    headers = _headers(reader, length)
    pe = _parse(headers)
    file_header, optional = pe.FILE_HEADER, pe.OPTIONAL_HEADER
    directories = [(d.VirtualAddress, d.Size) for d in optional.DATA_DIRECTORY]
    directories += [(0, 0)] * (DIRECTORIES - len(directories))
    image = Image(
        machine=file_header.Machine,
        base=optional.ImageBase,
        size=optional.SizeOfImage,
        characteristics=file_header.Characteristics,
        dll_characteristics=optional.DllCharacteristics,
        timestamp=file_header.TimeDateStamp,
        header_offset=pe.DOS_HEADER.e_lfanew,
        base_offset=optional.get_field_absolute_offset("ImageBase"),
        base_width=8 if optional.Magic == PE32_PLUS else 4,
        flags_offset=optional.get_field_absolute_offset("DllCharacteristics"),
        timestamp_offset=file_header.get_field_absolute_offset("TimeDateStamp"),
        sections=_sections(reader, len(headers), file_header.NumberOfSections),
        relocations=directories[BASE_RELOCATION_TABLE],
        blocks=(),
        signed=directories[CERTIFICATE_TABLE][1] != 0,
    )
    try:
        _judge_headers(image, optional, len(headers))
        _judge_sections(image, optional)
        _judge_length(image, length, file_header, directories[CERTIFICATE_TABLE])
        _judge_kind(image, directories[CLR_HEADER], reader)
        # An image without a table (a DLL of resources only) has nothing to relocate: only its base
        # moves.
        blocks = read_blocks(descriptor, image.sections, image.relocations, image.base_width)
    except FaultError as error:
        return image._replace(fault=error.fault, detail=error.detail)
    return image._replace(blocks=blocks)


def _headers(reader: Reader, length: int) -> bytes:
    """Return the file from its start to where the section table begins."""
    dos_header = reader.read(0, DOS_HEADER_SIZE)
    if not length:
        raise NotAnImage(Fault.EMPTY)
    if dos_header[:2] != b"MZ":
        raise NotAnImage(Fault.NO_IMAGE, "it does not begin with MZ")
    if len(dos_header) < DOS_HEADER_SIZE:
        raise NotAnImage(Fault.TRUNCATED, "the file ends within its DOS header")
    at = int.from_bytes(dos_header[60:64], "little")
    file_header = reader.read(at, FILE_HEADER_SIZE)
    if at >= MAX_HEADER_OFFSET or file_header[:4] != b"PE\0\0"[: len(file_header)]:
        raise NotAnImage(Fault.NO_IMAGE, f"no PE header at byte {at}")
    end = at + len(file_header) + int.from_bytes(file_header[20:22], "little")
    headers = reader.read(0, end)
    if len(file_header) < FILE_HEADER_SIZE or len(headers) < end:
        raise NotAnImage(Fault.TRUNCATED, "the file ends within its headers")
    return headers


def _parse(headers: bytes) -> Any:
    """Return pefile's view of the headers; its data end where the section table begins.

    pefile spends 30 µs on every section, so it does not see the table.
    """
    # 26 ms to import, and a run with nothing to do reads no image.
    import pefile

    try:
        pe: Any = pefile.PE(data=headers, fast_load=True)
    except pefile.PEFormatError as error:
        raise NotAnImage(Fault.NO_IMAGE, ascii(str(error.value))[1:-1])
    magic, size = pe.OPTIONAL_HEADER.Magic, pe.FILE_HEADER.SizeOfOptionalHeader
    shortest = SHORTEST_OPTIONAL_HEADER.get(magic)
    if shortest is None:
        raise NotAnImage(Fault.NO_IMAGE, f"optional header of unknown type 0x{magic:x}")
    if size < shortest:
        raise NotAnImage(Fault.NO_IMAGE, f"its optional header has {size} bytes")
    return pe


def _sections(reader: Reader, offset: int, count: int) -> tuple[Section, ...]:
    """Return the sections of the table at `offset`, in their order."""
    table = reader.read(offset, count * SECTION_HEADER.size)
    if len(table) < count * SECTION_HEADER.size:
        raise NotAnImage(Fault.TRUNCATED, "the file ends within its section table")
    return tuple(
        Section(name.rstrip(b"\0"), address, virtual_size, raw_offset, raw_size)
        for name, virtual_size, address, raw_size, raw_offset in SECTION_HEADER.iter_unpack(table)
    )


def _judge_headers(image: Image, optional: Any, section_table: int) -> None:
    """Raise FaultError for what the headers say and cannot be; `section_table` is its offset."""
    headers_end = section_table + len(image.sections) * SECTION_HEADER.size
    machine = machine_name(image.machine)
    width = MACHINE_WIDTH.get(image.machine)
    if width is None:
        raise FaultError(Fault.UNKNOWN_MACHINE, machine)
    if width != image.base_width:
        raise _damaged(f"headers of {image.base_width * 8} bits for machine {machine}")
    if optional.NumberOfRvaAndSizes > len(optional.DATA_DIRECTORY):
        raise _damaged(f"{optional.NumberOfRvaAndSizes} data directories do not fit in its headers")
    if optional.SizeOfHeaders < headers_end:
        raise _damaged(f"headers of {headers_end} bytes, SizeOfHeaders is {optional.SizeOfHeaders}")
    if optional.SectionAlignment < PAGE:
        raise FaultError(Fault.SMALL_ALIGNMENT, f"{optional.SectionAlignment} bytes")


def _judge_sections(image: Image, optional: Any) -> None:
    """Raise FaultError where the sections contradict the headers or each other.

    What Windows demands, and what all of some 1,900 images of GNU ld, LLD, MSVC and rustc kept to.
    """
    end = headers_end = optional.SizeOfHeaders
    for section in sorted(image.sections, key=lambda section: section.virtual_address):
        if section.virtual_address < end:
            raise _damaged(f"section {_name(section)} overlaps what lies before it in memory")
        end = section.virtual_address + max(section.virtual_size, section.raw_size)
    alignment = max(GRANULARITY, optional.SectionAlignment)
    if not end <= image.size <= min(-(-end // alignment) * alignment, LARGEST_IMAGE):
        raise _damaged(f"SizeOfImage is {image.size}, its sections end at {end}")
    end = headers_end
    for section in sorted(_with_data(image), key=lambda section: section.raw_offset):
        if section.raw_offset < end:
            raise _damaged(f"section {_name(section)} overlaps what lies before it in the file")
        if section.raw_offset % SECTOR:
            raise _damaged(f"section {_name(section)} begins at byte {section.raw_offset}")
        end = section.raw_offset + section.raw_size


def _judge_length(image: Image, length: int, file_header: Any, signature: tuple[int, int]) -> None:
    """Raise FaultError where a file of `length` bytes has too few for the image, or too many.

    A file that is being copied has its headers long before its end. `signature` is the offset and
    the size of it, in bytes.
    """
    parts = [(f"section {_name(s)}", s.raw_offset, s.raw_size) for s in _with_data(image)]
    if symbols := file_header.PointerToSymbolTable:
        parts.append(("the symbol table", symbols, file_header.NumberOfSymbols * SYMBOL_SIZE))
    for name, offset, size in (*parts, ("the signature", *signature)):
        if size and offset + size > length:
            detail = f"{name} ends at byte {offset + size}, the file has {length}"
            raise FaultError(Fault.TRUNCATED, detail)
    if length >= FOUR_GIB:
        raise _damaged("a file of 4 GiB, which no image has")


def _judge_kind(image: Image, clr_header: tuple[int, int], reader: Reader) -> None:
    """Raise FaultError for a sound image that must stay where it is."""
    if not image.is_dll:
        raise FaultError(Fault.NOT_A_DLL)
    if image.machine == ARM64:
        raise FaultError(Fault.ARM64)
    if image.characteristics & RELOCS_STRIPPED:
        raise FaultError(Fault.STRIPPED)
    if image.machine == X86_64 and image.base < FOUR_GIB:
        raise FaultError(Fault.LOW)
    if clr_header[1]:
        rva = clr_header[0] + 16  # of its Flags, in which 1 is ILONLY (ECMA-335 II.25.3.3)
        for section in image.sections:
            begin = rva - section.virtual_address
            if begin >= 0 and begin + 4 <= section.raw_size:
                flags = int.from_bytes(reader.read(section.raw_offset + begin, 4), "little")
                if flags & 1:
                    raise FaultError(Fault.NET_ONLY)
                return
        raise _damaged("its .NET header lies outside the sections")


def _damaged(detail: str) -> FaultError:
    return FaultError(Fault.DAMAGED, detail)


def _with_data(image: Image) -> list[Section]:
    return [section for section in image.sections if section.raw_size]


def _name(section: Section) -> str:
    return repr(section.name)[2:-1]
