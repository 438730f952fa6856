"""How close a clip is to the one it should be, pixel by pixel."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import CONTINUATION, Case, Quantity, metric

# The error that counts at least, in square levels: half a level in every pixel.
LEAST = 0.25


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of frames uint8 `t h w c` in decibels, at most that of half a level.

    A clip that is the same in every pixel would have infinite decibels, and no mean could be taken.
    """
    if frames.shape != truth.shape:
        raise ValueError(f"frames: found {frames.shape}, expected {truth.shape} as in the truth")
    error = np.square(frames.astype(np.float64) - truth.astype(np.float64)).mean()
    return decibels(max(error, LEAST))


def decibels(error: float) -> float:
    """Return the decibels of a mean square error in square levels."""
    return float(10 * np.log10(255**2 / error))


def held(case: Case) -> dict[str, float]:
    """Measure the last given frame, held."""
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
    """Measure the predicted frames of footage, where no truth of a world says how things move."""
    return {"psnr": psnr(case.frames[case.given :], case.truth[case.given :])}
