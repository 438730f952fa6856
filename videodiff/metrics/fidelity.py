"""How close a clip is to the one it should be, pixel by pixel."""

from __future__ import annotations

import numpy as np


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of frames uint8 `t h w c` in decibels; at most that of half a grey level.

    A clip that is the same in every pixel would have infinite decibels, of which no mean can be taken.
    """
    if frames.shape != truth.shape:
        raise ValueError(f"frames: found {frames.shape}, expected {truth.shape} as in the truth")
    error = np.square(frames.astype(np.float64) - truth.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 0.25)))
