"""Letterbox: black bars above and below, or left and right, during the whole clip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The brightness of a row ignores this share of its brightest pixels. A row up to level DARK of 255 is dark. The first
# row of the picture is brighter than the bar by STEP levels.
FEW, DARK, STEP = 0.02, 24, 24
# Bars outside this range of shares of the side are ignored. The thickest real bars surround upright video in a wide
# frame; what is left between thicker ones is a logo on black.
THINNEST, THICKEST = 0.02, 0.36
# Every STRIDE-th pixel of a row is examined.
STRIDE = 8


class Box(NamedTuple):
    """A part of the frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def levels(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the brightness of each row and each column of a grey image, uint8 `h w`."""
    return brightest(frame[:, ::STRIDE]), brightest(frame[::STRIDE].T)


def brightest(rows: np.ndarray) -> np.ndarray:
    """Return for each row the level that only a few of its pixels exceed."""
    place = int((1 - FEW) * (rows.shape[1] - 1))
    return np.partition(rows, place, axis=1)[:, place].astype(int)


def bar(level: np.ndarray) -> int:
    """Return how many rows (or columns) to crop at each end, from the greatest brightness of each over time.

    Bars are symmetric, and the picture begins at once: one that only grows dark to its edge has none.
    """
    content = np.flatnonzero(level > DARK)
    if not len(content):
        return 0
    first, last = edge(level, int(content[0])), edge(level[::-1], len(level) - 1 - int(content[-1]))
    # An even number, because two pixels share their chroma.
    width = (min(first, last) + 1) // 2 * 2
    if not THINNEST * len(level) <= width <= THICKEST * len(level):
        return 0
    return width if min(step(level, first), step(level[::-1], last)) >= STEP else 0


def edge(level: np.ndarray, first: int) -> int:
    """Return the first row, from the end of the bar on, that is half as bright as the picture.

    An encoder with few bits smears the edge over one or two rows; they would remain as a dark line.
    """
    blurred = level[first : first + 3]
    return first + int(np.argmax(2 * blurred >= blurred.max() + level[:first].max(initial=0)))


def step(level: np.ndarray, first: int) -> int:
    """Return how much brighter than the bar the picture from row `first` on is; its first three rows may be blurred."""
    return int(level[first : first + 3].max() - level[:first].max())


class Bars:
    """Finds the bars of a clip, frame by frame."""

    def __init__(self) -> None:
        self.rows = self.columns = 0

    def add(self, frame: np.ndarray) -> None:
        """Add a grey frame, uint8 `h w`; all frames have the same size."""
        rows, columns = levels(frame)
        self.rows, self.columns = np.maximum(self.rows, rows), np.maximum(self.columns, columns)

    def box(self) -> Box:
        """Return the picture inside the bars, from the greatest brightness of each row and column so far."""
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
