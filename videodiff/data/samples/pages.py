"""Headers of Parquet pages: read the unpacked size that a page states, without unpacking the page.

A header is a struct of Thrift's compact protocol. pyarrow trusts it: it allocates as many bytes as the header states,
even where the footer states fewer for the whole column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# Bytes of a header: most headers fit into the first number, pyarrow accepts none above the second.
HEAD, LONGEST = 2**9, 2**24
# Types of Thrift's compact protocol.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
NUMBERS = (I16, I32, I64)
# Allowed depth of nested structs; the header of a page has three levels.
DEEPEST = 8
# Field numbers of a header in parquet.thrift: the two sizes, and the structs whose first field counts values.
UNPACKED, PACKED, COUNTS, DICTIONARY = 2, 3, (5, 7, 8), 7


class Page(NamedTuple):
    """What the header of a page states: unpacked and packed bytes, number of values, whether it is a dictionary."""

    unpacked: int
    packed: int
    values: int
    dictionary: bool


class HeaderError(ValueError):
    """A header of a page that cannot be read."""


def read_pages(file: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """Yield the pages of a column from byte `start` to byte `end`; HeaderError if one cannot be read."""
    while start < end:
        page, length = read_header(file, start, end)
        yield page
        start += length + page.packed
        if start > end:
            raise HeaderError(f"found a page that ends at byte {start}, expected one that ends by {end}")


def read_header(file: BinaryIO, start: int, end: int) -> tuple[Page, int]:
    """Return the page that begins at a byte of a file, and the length of its header."""
    size = HEAD
    while True:
        file.seek(start)
        data = file.read(min(size, end - start))
        compact = Compact(data)
        try:
            fields = compact.struct()
            break
        except IndexError:
            if size >= LONGEST or len(data) < size:
                raise HeaderError(f"found a page header without an end at byte {start}") from None
            size = min(16 * size, LONGEST)
    counted = next((number for number in COUNTS if isinstance(fields.get(number), dict)), None)
    values = fields[counted].get(1) if counted else 0
    found = [fields.get(UNPACKED), fields.get(PACKED), values]
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in found):
        raise HeaderError(f"found the sizes {found} in the header of a page at byte {start}, expected numbers of bytes")
    return Page(*found, dictionary=counted == DICTIONARY), compact.place


class Compact:
    """A reader of Thrift's compact protocol; IndexError where the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, depth: int = 0) -> dict[int, object]:
        """Return the numbers and nested structs of a struct, by field number."""
        if depth > DEEPEST:
            raise HeaderError(f"found structs over {DEEPEST} deep in the header of a page, expected fewer")
        found, number = {}, 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            found[number] = self.value(head & 15, depth)
        return found

    def value(self, kind: int, depth: int) -> object:
        """Return a number or a struct; skip any other value and return None."""
        if kind in NUMBERS:
            return self.zigzag()
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            self.skip_list(depth)
        elif kind == BINARY:
            self.skip(self.varint())
        elif kind not in (TRUE, FALSE):
            self.skip({BYTE: 1, DOUBLE: 8}.get(kind, -1))
        return None

    def skip_list(self, depth: int) -> None:
        """Skip a list; each boolean in it takes one byte."""
        head = self.byte()
        count = head >> 4 if head >> 4 != 15 else self.varint()
        for _ in range(count):
            if head & 15 in (TRUE, FALSE):
                self.byte()
            else:
                self.value(head & 15, depth + 1)

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise HeaderError("found a number of over ten bytes in the header of a page")

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, length: int) -> None:
        """Skip `length` bytes."""
        if length < 0:
            raise HeaderError("found an unknown type in the header of a page, expected a type of Thrift")
        self.place += length
        if self.place > len(self.data):
            raise IndexError
