"""Overlay: edges that never change while the picture about them does: a watermark, a logo, a score board.

After Dekel et al. 2017 (On the Effectiveness of Visible Watermarks): what all frames share is in their mean gradient.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_prep.score.pixel_score import SHARE, PixelScore

# Every frame is looked at in this size of its short side, blurred by so many pixels, or a copy of other size and
# sharpness would have other edges.
SIDE, BLUR = 192, 0.6
# Levels a pixel of gradient in every frame at which an edge begins to be one and is; levels of deviation over time at
# which the picture about it begins to change and does. There is no step between, or a copy would differ.
EDGE, CHANGE = (8.0, 16.0), (8.0, 14.0)
# Pixels of "about", and of the rim of the frame, which may be that of a bar.
ABOUT, RIM = 11, 2


def overlay(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that persistent edges cover, 0 to 1; 0 for fewer than 4 frames.

    Over still ground, and in still footage, no overlay can be told from the scene. A clip and a copy of it that was
    encoded again differ by less than 15 %, or by less than 0.002, a third of the limit.
    """
    if len(frames) < 4:
        return {"overlay": 0.0}
    greys = [reduced(frame) for frame in frames]
    steps = [gradient(grey) for grey in greys]
    across, down = (sum(parts) / len(steps) for parts in zip(*steps, strict=True))
    strength = cv2.magnitude(across, down)
    # Nothing passes in front of an overlay: its edge is in every frame, in the same direction.
    rows, columns = np.nonzero(strength > EDGE[0])
    unit = across[rows, columns] / strength[rows, columns], down[rows, columns] / strength[rows, columns]
    weakest = np.min([x[rows, columns] * unit[0] + y[rows, columns] * unit[1] for x, y in steps], axis=0)
    lasting = np.zeros(strength.shape, np.float32)
    lasting[rows, columns] = ramp(weakest, EDGE) * ramp(change(greys)[rows, columns], CHANGE)
    lasting[:RIM] = lasting[-RIM:] = 0
    lasting[:, :RIM] = lasting[:, -RIM:] = 0
    # What is drawn is closed to the area of letters and signs, and lines one pixel thin are chance.
    closed = cv2.morphologyEx(lasting, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return {"overlay": float(cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).mean())}


def reduced(frame: np.ndarray) -> np.ndarray:
    """Return the luma of a frame in the size in which it is looked at, float32 `h w`."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = SIDE / min(grey.shape)
    height, width = (max(round(side * scale), 1) for side in grey.shape)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return cv2.GaussianBlur(grey.astype(np.float32), (0, 0), BLUR)


def ramp(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return 0 up to the first limit, 1 from the second on, and what lies between."""
    first, last = limits
    return ((values - first) / (last - first)).clip(0, 1)


def gradient(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal and the vertical derivative, float32 `h w`, in levels a pixel."""
    return tuple(cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1)))


def change(greys: list[np.ndarray]) -> np.ndarray:
    """Return by how many levels the luma about a pixel deviates over time, beside what the exposure does: `h w`."""
    total, squares = (np.zeros(greys[0].shape, np.float32) for _ in range(2))
    for grey, gain in zip(greys, exposures(greys), strict=True):
        grey = grey / np.float32(gain)
        cv2.accumulate(grey, total)
        cv2.accumulateSquare(grey, squares)
    variance = squares / len(greys) - (total / len(greys)) ** 2
    return cv2.blur(np.sqrt(np.maximum(variance, 0)), (ABOUT, ABOUT))


def exposures(greys: list[np.ndarray]) -> list[float]:
    """Return how much brighter each frame is than the median of all, by the pixels that are not black."""
    small = np.stack([grey[::8, ::8] for grey in greys])
    usual = np.median(small, axis=0)
    lit = usual > 16
    return [float(np.median(grey[lit] / usual[lit])) or 1.0 if lit.any() else 1.0 for grey in small]


SCORE = PixelScore({"overlay": SHARE}, overlay, fewest=4)
