"""Quality: blur and exposure."""

from __future__ import annotations

import cv2
import numpy as np


def quality(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Score uint8 `t h w c`: means over the frames, all but sharpness 0 to 1.

    sharpness: standard deviation of the Laplacian of the luma in levels, which depends on the size of the frames, so
    compare at one size; brightness and contrast: mean and standard deviation of the luma; clipped: share of pixels
    that are black or white.
    """
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return {
        "sharpness": float(np.mean([cv2.Laplacian(grey, cv2.CV_32F).std() for grey in greys])),
        "brightness": float(np.mean([grey.mean() for grey in greys]) / 255),
        "contrast": float(np.mean([grey.std() for grey in greys]) / 255),
        "clipped": float(np.mean([((grey <= 5) | (grey >= 250)).mean() for grey in greys])),
    }
