"""How close a clip is to the true clip, pixel by pixel."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import CONTINUATION, Case, Quantity, metric

# The least mean square error that is distinguished, in square levels: half a level in every pixel.
LEAST = 0.25
# The window of SSIM, and its constants for 255 levels.
WINDOW, DEVIATION = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


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


def psnr_by_frame(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the decibels of each frame."""
    return np.array([psnr(one[None], other[None]) for one, other in zip(frames, truth, strict=True)])


def ssim_by_frame(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each frame uint8 `t h w c` (Wang et al. 2004), in [-1, 1].

    Means over a Gaussian window of 11 x 11 pixels and deviation 1.5, where it lies within the picture; the mean of the
    colours. Smaller pictures have no such window.
    """
    if frames.shape != truth.shape:
        raise ValueError(f"frames: found {frames.shape}, expected {truth.shape} as in the truth")
    if min(frames.shape[1:3]) < WINDOW:
        raise ValueError(f"frames: found {frames.shape[1]} x {frames.shape[2]}, expected at least {WINDOW} x {WINDOW}")
    x, y = (np.moveaxis(video.astype(np.float64), -1, 1) for video in (frames, truth))
    mx, my = blurred(x), blurred(y)
    # Rounding may leave a flat picture a variance below zero.
    vx, vy = np.maximum(blurred(x * x) - mx * mx, 0.0), np.maximum(blurred(y * y) - my * my, 0.0)
    both = blurred(x * y) - mx * my
    likeness = (2 * mx * my + C1) * (2 * both + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return likeness.mean(axis=(1, 2, 3))


def blurred(pictures: np.ndarray) -> np.ndarray:
    """Return `... h w` averaged over the window, where it lies within the picture."""
    place = np.arange(WINDOW) - WINDOW // 2
    weight = np.exp(-(place**2) / (2 * DEVIATION**2))
    weight /= weight.sum()
    for axis in (-2, -1):
        pictures = np.lib.stride_tricks.sliding_window_view(pictures, WINDOW, axis=axis) @ weight
    return pictures


def held(case: Case) -> dict[str, float]:
    """Measure the clip that holds the last given frame."""
    truth = case.truth[case.given :]
    return likeness(np.broadcast_to(case.truth[case.given - 1], truth.shape), truth)


def likeness(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return both figures; pictures too small for the window have no structural similarity."""
    found = {"psnr": psnr(frames, truth)}
    return found | ({"ssim": float(ssim_by_frame(frames, truth).mean())} if min(frames.shape[1:3]) >= WINDOW else {})


def frame_by_frame(case: Case) -> dict[str, np.ndarray]:
    """Measure each predicted frame: how far a continuation holds."""
    frames, truth = case.frames[case.given :], case.truth[case.given :]
    found = {"psnr": psnr_by_frame(frames, truth)}
    return found | ({"ssim": ssim_by_frame(frames, truth)} if min(frames.shape[1:3]) >= WINDOW else {})


@metric(
    {"psnr": Quantity("higher", "dB", 0.0, decibels(LEAST)), "ssim": Quantity("higher", "", -1.0, 1.0)},
    tasks=(CONTINUATION,),
    clips="footage",
    references={"last frame held": held},
    beside={"psnr_static": ("last frame held", "psnr")},
    curve=frame_by_frame,
)
def fidelity(case: Case) -> dict[str, float]:
    """Measure the predicted frames against the true ones; in worlds only if `clips=all` asks for it."""
    return likeness(case.frames[case.given :], case.truth[case.given :])
