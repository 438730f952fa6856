"""Overlay: edges that never change while the picture around them does: a watermark, a logo, a score board.

After Dekel et al. 2017 (On the Effectiveness of Visible Watermarks): the mean gradient shows what all frames share.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_prep.score.pixel_score import SHARE, PixelScore

# Each frame is scaled to this short side and blurred by BLUR pixels, so that copies of other size or sharpness have
# the same edges.
SIDE, BLUR = 192, 0.6
# Ramps, without a step, so that a copy does not differ: the gradient in every frame, in levels per pixel, that makes an
# edge; the deviation over time, in levels, that makes the picture around it change.
EDGE, CHANGE = (8.0, 16.0), (8.0, 14.0)
# Pixels that count as around an edge; pixels at the rim of the frame that are ignored, as a bar may end there.
ABOUT, RIM = 11, 2


def overlay(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that persistent edges cover, 0 to 1; 0 for fewer than 4 frames.

    On a still background an overlay cannot be distinguished from the scene. A clip and a re-encoded copy of it differ
    by less than 15 %, or by less than 0.002, a third of the limit.
    """
    if len(frames) < 4:
        return {"overlay": 0.0}
    greys = [reduced(frame) for frame in frames]
    steps = [gradient(grey) for grey in greys]
    across, down = (sum(parts) / len(steps) for parts in zip(*steps, strict=True))
    strength = cv2.magnitude(across, down)
    # Nothing covers an overlay: its edge is in every frame, with the same direction.
    rows, columns = np.nonzero(strength > EDGE[0])
    unit = across[rows, columns] / strength[rows, columns], down[rows, columns] / strength[rows, columns]
    weakest = np.min([x[rows, columns] * unit[0] + y[rows, columns] * unit[1] for x, y in steps], axis=0)
    lasting = np.zeros(strength.shape, np.float32)
    lasting[rows, columns] = ramp(weakest, EDGE) * ramp(change(greys)[rows, columns], CHANGE)
    lasting[:RIM] = lasting[-RIM:] = 0
    lasting[:, :RIM] = lasting[:, -RIM:] = 0
    # Closing fills letters and signs; lines of one pixel are chance.
    closed = cv2.morphologyEx(lasting, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return {"overlay": float(cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).mean())}


def reduced(frame: np.ndarray) -> np.ndarray:
    """Return the luma of a frame at the size of the analysis, float32 `h w`."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = SIDE / min(grey.shape)
    height, width = (max(round(side * scale), 1) for side in grey.shape)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return cv2.GaussianBlur(grey.astype(np.float32), (0, 0), BLUR)


def ramp(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return a linear ramp: 0 up to the first limit, 1 from the second on."""
    first, last = limits
    return ((values - first) / (last - first)).clip(0, 1)


def gradient(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal and the vertical derivative, float32 `h w`, in levels per pixel."""
    return tuple(cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1)))


def change(greys: list[np.ndarray]) -> np.ndarray:
    """Return the deviation over time of the luma around each pixel, in levels `h w`, corrected for exposure."""
    total, squares = (np.zeros(greys[0].shape, np.float32) for _ in range(2))
    for grey, gain in zip(greys, exposures(greys), strict=True):
        grey = grey / np.float32(gain)
        cv2.accumulate(grey, total)
        cv2.accumulateSquare(grey, squares)
    variance = squares / len(greys) - (total / len(greys)) ** 2
    return cv2.blur(np.sqrt(np.maximum(variance, 0)), (ABOUT, ABOUT))


def exposures(greys: list[np.ndarray]) -> list[float]:
    """Return the brightness of each frame relative to the median frame, from the pixels that are not black."""
    small = np.stack([grey[::8, ::8] for grey in greys])
    usual = np.median(small, axis=0)
    lit = usual > 16
    return [float(np.median(grey[lit] / usual[lit])) or 1.0 if lit.any() else 1.0 for grey in small]


SCORE = PixelScore({"overlay": SHARE}, overlay, fewest=4)
