"""How close a clip is to the true clip, pixel by pixel."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import CONTINUATION, Case, Quantity, metric

# The least mean square error that is distinguished, in square levels: half a level in every pixel.
LEAST = 0.25


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of frames uint8 `t h w c` in decibels.

    It is capped at the ratio of half a level: an exact copy would have infinite decibels, and no mean would exist.
    """
    if frames.shape != truth.shape:
        raise ValueError(f"frames: found {frames.shape}, expected {truth.shape} as in the truth")
    error = np.square(frames.astype(np.float64) - truth.astype(np.float64)).mean()
    return decibels(max(error, LEAST))


def decibels(error: float) -> float:
    """Return the decibels of a mean square error in square levels."""
    return float(10 * np.log10(255**2 / error))


def held(case: Case) -> dict[str, float]:
    """Measure the clip that holds the last given frame."""
    truth = case.truth[case.given :]
    return {"psnr": psnr(np.broadcast_to(case.truth[case.given - 1], truth.shape), truth)}


@metric(
    {"psnr": Quantity("higher", "dB", 0.0, decibels(LEAST))},
    tasks=(CONTINUATION,),
    clips="footage",
    references={"last frame held": held},
    beside={"psnr_static": ("last frame held", "psnr")},
)
def fidelity(case: Case) -> dict[str, float]:
    """Measure the predicted frames of footage, which has no truth of a world."""
    return {"psnr": psnr(case.frames[case.given :], case.truth[case.given :])}
