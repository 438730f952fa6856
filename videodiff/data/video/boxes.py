"""Boxes: the outermost parts of an MP4 file, of which one of a few megabytes may have a million."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

# Two for each frame are many, and two hours at 60 frames a second have no more. FFmpeg takes seconds for so many.
MOST_BOXES = 2**20
# What an MP4 file, or a part of one, may begin with.
FIRST = (b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"free", b"skip", b"wide", b"mdat", b"pnot", b"uuid")


class BoxesError(ValueError):
    """A file of more boxes than any that is meant to be watched."""


def top_boxes(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield type and end, in bytes from the start, of every outermost box of an MP4 file; of other files nothing.

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
