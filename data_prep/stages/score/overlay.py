"""Overlay: edges that never change while the picture about them does: a watermark, a logo, a score board.

After Dekel et al. 2017 (On the Effectiveness of Visible Watermarks): the median of the gradient over time is what all
frames share.
"""

from __future__ import annotations

import cv2
import numpy as np

# Levels a pixel of gradient that make an edge, levels of deviation over time that make a change, pixels of "about".
EDGE, CHANGE, ABOUT = 16.0, 10.0, 15


def overlay(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return the share of the area of uint8 `t h w c` that persistent edges cover, 0 to 1; 0 for fewer than 4 frames.

    Over still ground, and in still footage, no overlay can be told from the scene.
    """
    if len(frames) < 4:
        return {"overlay": 0.0}
    greys = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    changing = cv2.blur(greys.std(axis=0, dtype=np.float32), (ABOUT, ABOUT)) > CHANGE
    gradients = np.stack([gradient(grey) for grey in greys])
    shared = np.median(gradients, axis=0)
    strength = np.hypot(*shared)
    # Nothing passes in front of an overlay: its edge is in every frame, in the same direction.
    weakest = (gradients * shared).sum(axis=1).min(axis=0) / np.maximum(strength, 1e-6)
    lasting = (changing & (strength > EDGE) & (weakest > EDGE / 2)).astype(np.uint8)
    # What is drawn is closed to the area of letters and signs, and lines one pixel thin are chance.
    closed = cv2.morphologyEx(lasting, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    return {"overlay": float(cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).mean())}


def gradient(grey: np.ndarray) -> np.ndarray:
    """Return the horizontal and vertical derivative, float32 `2 h w`, in levels a pixel."""
    return np.stack([cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1))])
