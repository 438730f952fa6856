"""Letterbox: black bars above and below, or left and right, that stay for the whole clip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A row is as bright as all but this share of its pixels; up to this level, of 255, it is dark; from the last row of a
# bar to the first of the picture it is this much brighter.
FEW, DARK, STEP = 0.02, 24, 24
# Bars thinner or thicker than this share of the side are left alone; the thickest are those of upright video in a wide
# frame, and beyond them is a logo on black.
THINNEST, THICKEST = 0.02, 0.36
# Every so many pixels of a row are looked at.
STRIDE = 8


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
    first, last = edge(level, int(content[0])), edge(level[::-1], len(level) - 1 - int(content[-1]))
    # Even, as two pixels share a colour.
    width = (min(first, last) + 1) // 2 * 2
    if not THINNEST * len(level) <= width <= THICKEST * len(level):
        return 0
    return width if min(step(level, first), step(level[::-1], last)) >= STEP else 0


def edge(level: np.ndarray, first: int) -> int:
    """Return the row that is half as bright as the picture, from the first that is not dark on.

    An encoder with few bits smears the edge over a row or two, which would stay as a dark line.
    """
    blurred = level[first : first + 3]
    return first + int(np.argmax(2 * blurred >= blurred.max() + level[:first].max(initial=0)))


def step(level: np.ndarray, first: int) -> int:
    """Return by how much the picture that begins at row `first` is brighter; three rows of it may be blurred."""
    return int(level[first : first + 3].max() - level[:first].max())


class Bars:
    """The bars of a clip whose frames come one by one."""

    def __init__(self) -> None:
        self.rows = self.columns = 0

    def add(self, frame: np.ndarray) -> None:
        """Look at a grey frame, uint8 `h w`, of the same size as those before."""
        rows, columns = levels(frame)
        self.rows, self.columns = np.maximum(self.rows, rows), np.maximum(self.columns, columns)

    def box(self) -> Box:
        """Return the picture inside the bars, for the brightest that each row and column was so far."""
        top, left = bar(self.rows), bar(self.columns)
        return Box(top, left, len(self.rows) - 2 * top, len(self.columns) - 2 * left)

    def share(self) -> float:
        """Return the share of the frame that is bars, 0 to 1."""
        box = self.box()
        return 1 - box.height * box.width / (len(self.rows) * len(self.columns))


def letterbox(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that is bars, 0 to 1."""
    # Packing imports this file, and the plain installation, which can pack, has no OpenCV.
    import cv2

    bars = Bars()
    for frame in frames:
        bars.add(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
    return {"letterbox": bars.share()}
