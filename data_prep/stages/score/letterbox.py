"""Letterbox: black bars above and below, or left and right, that stay for the whole clip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A pixel above this level, of 255, is lit; a row of a bar has few of them, the first row of the picture has many.
DARK, FEW, MANY = 24, 0.02, 0.3
# Bars thinner than this share of the side are left alone.
THINNEST = 0.02


class Box(NamedTuple):
    """A part of the frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def lit(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of lit pixels in each row and in each column of a grey image, uint8 `h w`."""
    bright = frame > DARK
    return np.count_nonzero(bright, axis=1) / frame.shape[1], np.count_nonzero(bright, axis=0) / frame.shape[0]


def bar(share: np.ndarray) -> int:
    """Return how many rows (or columns) to crop at each end, given the most that each was ever lit.

    Bars are symmetric, and the picture begins at once: a picture that only grows dark to its edge has none.
    """
    content = np.flatnonzero(share > FEW)
    if not len(content):
        return 0
    first, last = content[0], len(share) - 1 - content[-1]
    # Even, as two pixels share a colour.
    width = int(min(first, last) + 1) // 2 * 2
    # Two rows of the picture may be blurred into the bar by compression.
    sharp = min(share[first : first + 3].max(), share[::-1][last : last + 3].max()) > MANY
    return width if sharp and width >= THINNEST * len(share) else 0


def find_box(rows: np.ndarray, columns: np.ndarray) -> Box:
    """Return the picture inside the bars, from the most that each row and column was lit in any frame."""
    top, left = bar(rows), bar(columns)
    return Box(top, left, len(rows) - 2 * top, len(columns) - 2 * left)


def letterbox(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that is bars, 0 to 1."""
    shares = [lit(frame.max(axis=-1)) for frame in frames]
    box = find_box(*(np.max(side, axis=0) for side in zip(*shares, strict=True)))
    return {"letterbox": 1 - box.height * box.width / (frames.shape[1] * frames.shape[2])}
