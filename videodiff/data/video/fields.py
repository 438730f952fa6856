"""Fields: television and camcorders code H.264 field by field, so that a decoder makes one frame of two packets.

The decoder of HEVC gives each field as a frame of half the height, which no player shows so: such a file is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import av

from videodiff.data.video.info import DecodeError

# Types of units of H.264 (ITU-T H.264, table 7-1): slices, and the sets of parameters that they refer to.
SLICES, SEQUENCE, PICTURE = (1, 5), 7, 8
# Profiles whose parameters begin with the format of colours (7.3.2.1.1).
HIGH = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)
# Bytes from the beginning of a slice, and of a set of parameters, that hold what is read.
HEADER, SET = 32, 4096


class Layout(NamedTuple):
    """What the header of a slice depends on: bits of its number and of its colour, and whether it may be a field."""

    number: int
    colour: int
    fields: bool


class Bits:
    """The bits of a unit behind its type, as H.264 writes them; ValueError at the end."""

    def __init__(self, unit: bytes) -> None:
        # A 3 stands behind two zeros that are followed by a small byte, so that no unit holds the mark of a new one.
        data = unit[1:].replace(b"\0\0\3", b"\0\0")
        self.text, self.place = "".join(f"{byte:08b}" for byte in data), 0

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        self.place += count
        if self.place > len(self.text):
            raise ValueError("found the end of a unit, expected more bits")
        return int(self.text[self.place - count : self.place] or "0", 2)

    def golomb(self) -> int:
        """Return the next number in Exp-Golomb code; a signed one has its sign last, as an odd or even number."""
        zeros = self.text.index("1", self.place) - self.place
        self.place += zeros
        return self.take(zeros + 1) - 1


def check_whole(frame: av.VideoFrame, codec: str) -> None:
    """Raise DecodeError if a decoded frame is a single field; codec: the name of its stream's codec."""
    # Of HEVC ffmpeg calls only those pictures interlaced that say they are fields (D.3.3: pic_struct 1, 2, 9 to 12).
    if codec == "hevc" and frame.interlaced_frame:
        raise DecodeError(
            f"found HEVC coded by fields, {frame.width} x {frame.height} is half a picture; expected whole frames, as "
            "`ffmpeg -i IN -vf weave=top OUT` makes them (weave=bottom where the bottom field is first)"
        )


class Fields:
    """Tells which packets of a stream hold the second field of a picture; call it with each packet, in their order."""

    def __init__(self, stream: av.VideoStream) -> None:
        head = bytes(stream.codec_context.extradata or b"") if stream.codec_context.name == "h264" else None
        self.used, self.first = head is not None, None
        self.sequences: dict[int, Layout] = {}
        self.pictures: dict[int, int] = {}
        # In MP4 and Matroska a length stands before each unit, elsewhere a mark.
        self.length = (head[4] & 3) + 1 if head and head[0] == 1 and len(head) > 6 else 0
        for unit in stored_sets(head) if self.length else marked_units(head or b""):
            self.read(unit)

    def __call__(self, packet: av.Packet) -> bool:
        """Return whether a packet completes the picture that the packet before it began."""
        interlaced = any(layout.fields for layout in self.sequences.values())
        if not self.used or not (interlaced or packet.is_keyframe):
            return False
        begun = list(self.begun(bytes(packet)))
        second = bool(begun) and self.completes(begun[0])
        for field in begun:
            self.first = None if self.completes(field) else field
        return second

    def completes(self, field: tuple[int, int] | None) -> bool:
        """Return whether a field, as `read` returns it, is of the same frame as the first one, and the other half."""
        return None not in (field, self.first) and field[0] == self.first[0] and field[1] != self.first[1]

    def begun(self, data: bytes) -> Iterator[tuple[int, int] | None]:
        """Yield what `read` returns for each picture or field that begins in a packet."""
        for unit in sized_units(data, self.length) if self.length else marked_units(data):
            # A picture begins with the slice of its first macroblock, whose number 0 is a single bit.
            begins = unit[0] & 31 in SLICES and unit[1:2] >= b"\x80"
            found = self.read(unit)
            if begins:
                yield found

    def read(self, unit: bytes) -> tuple[int, int] | None:
        """Keep a set of parameters; of the slice of a field return the frame's number and the half, 1 at the bottom."""
        kind = unit[0] & 31
        # The decoder says what is damaged.
        with contextlib.suppress(ValueError, KeyError):
            if kind == SEQUENCE:
                number, layout = read_sequence(Bits(unit[:SET]))
                self.sequences[number] = layout
            elif kind == PICTURE:
                bits = Bits(unit[:HEADER])
                number = bits.golomb()
                self.pictures[number] = bits.golomb()
            elif kind in SLICES:
                return self.read_slice(Bits(unit[:HEADER]))
        return None

    def read_slice(self, bits: Bits) -> tuple[int, int] | None:
        """Return the same for the header of a slice (7.3.3)."""
        _, _, picture = bits.golomb(), bits.golomb(), bits.golomb()
        layout = self.sequences[self.pictures[picture]]
        bits.take(layout.colour)
        number = bits.take(layout.number)
        return (number, bits.take(1)) if layout.fields and bits.take(1) else None


def read_sequence(bits: Bits) -> tuple[int, Layout]:
    """Return number and values of a sequence parameter set (7.3.2.1.1)."""
    profile, _, number, colour = bits.take(8), bits.take(16), bits.golomb(), 0
    if profile in HIGH:
        chroma = bits.golomb()
        colour = 2 * bits.take(1) if chroma == 3 else 0
        bits.golomb(), bits.golomb(), bits.take(1)
        if bits.take(1):
            skip_scaling(bits, 12 if chroma == 3 else 8)
    frame = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1), bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb(), bits.take(1), bits.golomb(), bits.golomb()
    return number, Layout(frame, colour, not bits.take(1))


def skip_scaling(bits: Bits, lists: int) -> None:
    """Pass over the scaling lists of a set, of which each may be left out, or end early (7.3.2.1.1.1)."""
    for number in range(lists):
        if not bits.take(1):
            continue
        last = 8
        for _ in range(16 if number < 6 else 64):
            code = bits.golomb()
            last = (last + (-1) ** (code + 1) * ((code + 1) // 2)) % 256
            if not last:
                break


def marked_units(data: bytes) -> Iterator[bytes]:
    """Yield the units of data in which the bytes 0, 0, 1 stand before each."""
    yield from (unit for unit in data.split(b"\0\0\1")[1:] if unit)


def sized_units(data: bytes, size: int) -> Iterator[bytes]:
    """Yield the units of data in which a length of `size` bytes stands before each."""
    place = 0
    while place + size < len(data):
        end = place + size + int.from_bytes(data[place : place + size], "big")
        if unit := data[place + size : end]:
            yield unit
        place = end


def stored_sets(head: bytes) -> Iterator[bytes]:
    """Yield the sets of parameters in the header of a stream of MP4 (ISO/IEC 14496-15, 5.3.3.1)."""
    place, left = 6, head[5] & 31
    for _ in range(2):
        for _ in range(left):
            end = place + 2 + int.from_bytes(head[place : place + 2], "big")
            if unit := head[place + 2 : end]:
                yield unit
            place = end
        left, place = int.from_bytes(head[place : place + 1], "big"), place + 1
