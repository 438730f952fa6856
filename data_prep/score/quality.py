"""Quality: blur and exposure."""

from __future__ import annotations

import cv2
import numpy as np

from data_prep.score.pixel_score import SHARE, PixelScore, Scale

# Sharpness is taken of frames of this short side, blurred by so many pixels: the finest detail is what an encoder and
# a change of size take first, and what grain is made of.
SIDE, FINEST = 128, 0.8
# Pixels of a side over which black and white are told, and the levels at which a place begins to be either and is: what
# single pixels do changes with every encoding.
PLACE, BLACK, WHITE = 4, (8.0, 3.0), (247.0, 252.0)


def quality(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Score uint8 `t h w c`: means over the frames, all but sharpness 0 to 1.

    sharpness: standard deviation of the Laplacian of the luma in levels, in one size whatever that of the frames;
    brightness and contrast: mean and standard deviation of the luma; clipped: share of the area that is black or white.
    A clip and a copy of it that was encoded again differ by less than 15 %, or by 0.01 in clipped, which is nothing to
    its limit.
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
    scale = SIDE / min(grey.shape)
    height, width = (max(round(side * scale), 1) for side in grey.shape)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return float(cv2.Laplacian(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), FINEST), cv2.CV_32F).std())


def clipped(grey: np.ndarray) -> float:
    """Return the share of the area that is black or white, where it is so in part in part."""
    size = max(grey.shape[1] // PLACE, 1), max(grey.shape[0] // PLACE, 1)
    places = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return sum(float(((places - begin) / (full - begin)).clip(0, 1).mean()) for begin, full in (BLACK, WHITE))


SCORE = PixelScore({"sharpness": Scale("levels"), "brightness": SHARE, "contrast": SHARE, "clipped": SHARE}, quality)
