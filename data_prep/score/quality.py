"""Quality: blur and exposure."""

from __future__ import annotations

import cv2
import numpy as np

from data_prep.score.pixel_score import SHARE, PixelScore, Scale

# Blur in pixels before sharpness is measured: encoders remove the finest detail first, and grain is of that size.
FINEST = 1.0
# Black and white are measured in squares of PLACE pixels, because single pixels change with every encoding; each ramp
# goes from the level where a square begins to count to the level where it counts fully.
PLACE, BLACK, WHITE = 4, (8.0, 3.0), (247.0, 252.0)


def quality(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Score uint8 `t h w c`: means over the frames, all but sharpness 0 to 1.

    sharpness: standard deviation of the Laplacian of the luma in levels; it depends on the size of the frames.
    brightness, contrast: mean and standard deviation of the luma. clipped: share of the area that is black or white.
    """
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return {
        "sharpness": float(np.mean([sharpness(grey) for grey in greys])),
        "brightness": float(np.mean([grey.mean() for grey in greys]) / 255),
        "contrast": float(np.mean([grey.std() for grey in greys]) / 255),
        "clipped": float(np.mean([clipped(grey) for grey in greys])),
    }


def sharpness(grey: np.ndarray) -> float:
    """Return the standard deviation of the Laplacian, without the finest detail."""
    return float(cv2.Laplacian(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), FINEST), cv2.CV_32F).std())


def clipped(grey: np.ndarray) -> float:
    """Return the share of the area that is black or white; grey levels on the ramps count in part."""
    size = max(grey.shape[1] // PLACE, 1), max(grey.shape[0] // PLACE, 1)
    places = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return sum(float(((places - begin) / (full - begin)).clip(0, 1).mean()) for begin, full in (BLACK, WHITE))


SCORE = PixelScore({"sharpness": Scale("levels"), "brightness": SHARE, "contrast": SHARE, "clipped": SHARE}, quality)
