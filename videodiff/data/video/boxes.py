"""Boxes: the outermost parts of an MP4 file. A hostile file of a few megabytes may have a million of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

# Two hours at 60 frames a second with two boxes per frame stay below this limit. FFmpeg takes seconds for so many.
MOST_BOXES = 2**20
# Types of the first box of an MP4 file, or of a fragment of one.
FIRST = (b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"free", b"skip", b"wide", b"mdat", b"pnot", b"uuid")


class BoxesError(ValueError):
    """A file with more boxes than any real video has."""


def top_boxes(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield type and end, in bytes from the start, of every outermost box of an MP4 file; nothing for other files.

    BoxesError where there are over `MOST_BOXES`.
    """
    start, count, size = 0, 0, file.seek(0, io.SEEK_END)
    while start + 8 <= size:
        file.seek(start)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if start == 0 and kind not in FIRST:
            return
        count += 1
        if count > MOST_BOXES:
            raise BoxesError(f"found over {MOST_BOXES:,} outermost boxes in the MP4 file, expected fewer")
        # 1: the length follows as 64 bits; 0: up to the end of the file.
        length = int.from_bytes(file.read(8), "big") if length == 1 else length or size - start
        start += max(length, 8)
        yield kind.decode("latin-1"), start
