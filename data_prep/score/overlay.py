"""Overlay: edges that never change while the picture about them does: a watermark, a logo, a score board.

After Dekel et al. 2017 (On the Effectiveness of Visible Watermarks): what all frames share is in their mean gradient.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_prep.score.pixel_score import SHARE, PixelScore

# Levels a pixel of gradient that make an edge, levels of deviation over time that make a change, pixels of "about".
EDGE, CHANGE, ABOUT = 16.0, 10.0, 15


def overlay(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that persistent edges cover, 0 to 1; 0 for fewer than 4 frames.

    Over still ground, and in still footage, no overlay can be told from the scene.
    """
    if len(frames) < 4:
        return {"overlay": 0.0}
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    steps = [gradient(grey) for grey in greys]
    across, down = (sum(parts) / len(steps) for parts in zip(*steps, strict=True))
    strength = cv2.magnitude(across, down)
    rows, columns = np.nonzero((strength > EDGE) & changing(greys))
    # Nothing passes in front of an overlay: its edge is in every frame, in the same direction.
    unit = across[rows, columns] / strength[rows, columns], down[rows, columns] / strength[rows, columns]
    weakest = [x[rows, columns] * unit[0] + y[rows, columns] * unit[1] for x, y in steps]
    lasting = np.zeros(greys[0].shape, np.uint8)
    lasting[rows, columns] = np.min(weakest, axis=0) > EDGE / 2
    # What is drawn is closed to the area of letters and signs, and lines one pixel thin are chance.
    closed = cv2.morphologyEx(lasting, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    return {"overlay": float(cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).mean())}


def gradient(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal and the vertical derivative, float32 `h w`, in levels a pixel."""
    return tuple(cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1)))


def changing(greys: list[np.ndarray]) -> np.ndarray:
    """Return where the luma about a pixel changes over time by more than the exposure does: booleans `h w`."""
    total, squares = (np.zeros(greys[0].shape, np.float32) for _ in range(2))
    for grey, gain in zip(greys, exposures(greys), strict=True):
        grey = grey.astype(np.float32) / gain
        cv2.accumulate(grey, total)
        cv2.accumulateSquare(grey, squares)
    variance = squares / len(greys) - (total / len(greys)) ** 2
    return cv2.blur(np.sqrt(np.maximum(variance, 0)), (ABOUT, ABOUT)) > CHANGE


def exposures(greys: list[np.ndarray]) -> list[float]:
    """Return how much brighter each frame is than the median of all, by the pixels that are not black."""
    small = np.stack([grey[::8, ::8] for grey in greys]).astype(np.float32)
    usual = np.median(small, axis=0)
    lit = usual > 16
    return [float(np.median(grey[lit] / usual[lit])) or 1.0 if lit.any() else 1.0 for grey in small]


SCORE = PixelScore({"overlay": SHARE}, overlay, fewest=4)
