"""Letterbox: black bars above and below, or left and right, that stay for the whole clip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A row is as bright as all but this share of its pixels; up to this level, of 255, it is dark; from the last row of a
# bar to the first of the picture it is this much brighter.
FEW, DARK, STEP = 0.02, 24, 24
# Bars thinner than this share of the side are left alone. Every so many pixels of a row are looked at.
THINNEST, STRIDE = 0.02, 4


class Box(NamedTuple):
    """A part of the frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def levels(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how bright each row and each column of a grey image is, uint8 `h w`."""
    return brightest(frame[:, ::STRIDE]), brightest(frame[::STRIDE].T)


def brightest(rows: np.ndarray) -> np.ndarray:
    """Return the level of each row that only a few of its pixels exceed."""
    place = int((1 - FEW) * (rows.shape[1] - 1))
    return np.partition(rows, place, axis=1)[:, place].astype(int)


def bar(level: np.ndarray) -> int:
    """Return how many rows (or columns) to crop at each end, given the brightest that each ever was.

    Bars are symmetric, and the picture begins at once: one that only grows dark to its edge has none.
    """
    content = np.flatnonzero(level > DARK)
    if not len(content):
        return 0
    first, last = int(content[0]), int(len(level) - 1 - content[-1])
    # Even, as two pixels share a colour.
    width = (min(first, last) + 1) // 2 * 2
    if width < THINNEST * len(level):
        return 0
    return width if min(step(level, first), step(level[::-1], last)) >= STEP else 0


def step(level: np.ndarray, first: int) -> int:
    """Return by how much the picture that begins at row `first` is brighter; three rows of it may be blurred."""
    return int(level[first : first + 3].max() - level[:first].max())


def find_box(rows: np.ndarray, columns: np.ndarray) -> Box:
    """Return the picture inside the bars, from the brightest that each row and column was in any frame."""
    top, left = bar(rows), bar(columns)
    return Box(top, left, len(rows) - 2 * top, len(columns) - 2 * left)


def letterbox(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that is bars, 0 to 1."""
    found = [levels(frame.max(axis=-1)) for frame in frames]
    box = find_box(*(np.max(side, axis=0) for side in zip(*found, strict=True)))
    return {"letterbox": 1 - box.height * box.width / (frames.shape[1] * frames.shape[2])}
