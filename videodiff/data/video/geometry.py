"""Geometry: rotate and mirror coded pictures, and scale them to square pixels, as a player shows them."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from videodiff.data.video.info import DecodeError, check_pixels

# A rotation may differ from a multiple of 90 degrees by one degree; this is its tangent.
OFF = 0.0175
# Pixels count as square up to this share: a ratio such as 1280:1278 corrects a rounded width.
SQUARE = Fraction(1, 100)
# Two aspect ratios are equal up to this share, because sizes are rounded to whole or even pixels.
SAME_SHAPE = 0.02


class Orientation(NamedTuple):
    """One of the eight ways to turn a picture by quarters and to mirror it.

    transposed: rows become columns, before the picture is mirrored left to right (`across`) and top to bottom (`down`).
    """

    transposed: bool = False
    across: bool = False
    down: bool = False

    def turn(self, image: np.ndarray) -> np.ndarray:
        """Return a view of an image `h w c` as it is shown."""
        image = image.swapaxes(0, 1) if self.transposed else image
        return image[:: -1 if self.down else 1, :: -1 if self.across else 1]

    def swap(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height after the turn for the size before it, or the reverse."""
        return size[::-1] if self.transposed else size

    def __str__(self) -> str:
        if self.transposed != (self.across != self.down):
            return f"mirrored (EXIF {EXIF.index(self) + 1})"
        return f"rotated by {180 if not self.transposed else 90 if self.across else 270} degrees"


UPRIGHT = Orientation()
# Index i has the orientation with number i + 1 in EXIF.
EXIF = (
    UPRIGHT,
    Orientation(False, True, False),
    Orientation(False, True, True),
    Orientation(False, False, True),
    Orientation(True, False, False),
    Orientation(True, True, False),
    Orientation(True, True, True),
    Orientation(True, False, True),
)


def orientation_of_exif(number: object) -> Orientation:
    """Return the orientation for a tag of EXIF; numbers outside 1 to 8 mean upright."""
    return EXIF[number - 1] if isinstance(number, int) and 1 <= number <= 8 else UPRIGHT


def orientation_of_matrix(matrix: bytes) -> Orientation:
    """Return the orientation for a display matrix: nine int32, (a b u c d v x y w), map (p, q) to (ap + cq, bp + dq).

    Angles up to a degree from a multiple of 90 are that one; others are a DecodeError, as the corners would be empty. A
    matrix without an area says nothing.
    """
    a, b, _, c, d, *_ = struct.unpack("9i", matrix)
    if a * d == b * c:
        return UPRIGHT
    transposed = abs(b * c) > abs(a * d)
    (x, y), rest = ((c, b), (a, d)) if transposed else ((a, d), (b, c))
    if max(map(abs, rest)) > OFF * min(abs(x), abs(y)):
        raise DecodeError("found a picture rotated by no multiple of 90 degrees, expected one: rotate its pixels")
    return Orientation(transposed, x < 0, y < 0)


class Display(NamedTuple):
    """How a picture is shown: width over height of a coded pixel, then the turn; `profile`: ICC profile of colours."""

    ratio: Fraction = Fraction(1)
    orientation: Orientation = UPRIGHT
    profile: bytes = b""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the shown width and height, in square pixels, of a picture of this coded size.

        A width that changes becomes the nearest even one: so it stays when the picture is encoded.
        """
        square = self.ratio == 1 or abs(self.ratio - 1) <= SQUARE
        shown = (width if square else max(2 * round(width * self.ratio / 2), 2)), height
        check_pixels(*shown)
        return self.orientation.swap(shown)


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes have the same aspect ratio, so that one may be scaled to the other."""
    across, down = one[0] * other[1], other[0] * one[1]
    return abs(across - down) <= SAME_SHAPE * max(across, down)


def even_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the nearest even width and height, scaled down to this short side if larger; never scaled up."""
    scale = min(1.0, short_side / min(size))
    return tuple(max(min(2 * round(side * scale / 2), side // 2 * 2), 2) for side in size)
