"""Judge a clip by its flow: whether moving pixels keep their colour, and whether anything moves."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import Case, Quantity, metric
from videodiff.metrics.motion.flow import Flow, flow_of, sampled
from videodiff.metrics.weights import Weights

# VBench's dynamic degree: the frames a second that count, the share of the fastest pixels, and the least motion.
LOOKED_AT, FASTEST, LEAST_STEP = 8.0, 0.05, 6.0 / 256


def warping_error(frames: np.ndarray, flow: Flow) -> float:
    """Return the mean square difference of each pixel and where it goes (Lai et al. 2018), over frames uint8 `t h w c`.

    Levels in [0, 1], squares summed over the colours; a mean over the pixels where the flow holds, then over frames.
    Pairs of frames in which it holds nowhere are left out.
    """
    video = frames.astype(np.float64) / 255
    errors = []
    for one, other, step, holds in zip(video[:-1], video[1:], flow.step, flow.holds, strict=True):
        if holds.any():
            errors.append(np.square(one - sampled(other, step)[0]).sum(axis=-1)[holds].mean())
    return float(np.mean(errors)) if errors else 0.0


def moves(flow: Flow, fps: float) -> bool:
    """Tell whether a clip moves by VBench's rule, with this flow in place of RAFT's.

    Of frames at about 8 a second, at least a quarter must move: their fastest 5 % of pixels go 6 pixels of 256 on
    average.
    """
    every = max(1, round(fps / LOOKED_AT))
    frames = len(flow.step) + 1
    looked = range(0, frames, every)
    height, width = flow.step.shape[1:3]
    fast = 0
    for start in looked[:-1]:
        # A pixel is followed from one of the frames to the next one by the sum of its steps.
        length = np.linalg.norm(followed(flow.step[start : start + every]), axis=-1).ravel()
        top = np.sort(length)[::-1][: max(1, int(height * width * FASTEST))]
        fast += bool(top.mean() > LEAST_STEP * min(height, width))
    return fast >= max(1, round(4 * len(looked) / 16)) if len(looked) > 1 else False


def followed(steps: np.ndarray) -> np.ndarray:
    """Return where each pixel is after several steps (k, h, w, 2), relative to where it began."""
    total = steps[0].copy()
    for step in steps[1:]:
        total += sampled(step, total)[0]
    return total


@metric(
    {"warping_error": Quantity("lower", "", 0.0), "dynamic_degree_share": Quantity("higher", "", 0.0, 1.0)},
    weights=Weights(modules=("cv2",)),
)
def warping(case: Case) -> dict[str, float]:
    """Measure a clip by its own flow: exact in worlds, by DIS elsewhere."""
    if len(case.frames) < 2:
        return {"warping_error": 0.0, "dynamic_degree_share": 0.0}
    flow = flow_of(case)
    return {
        "warping_error": warping_error(case.frames, flow),
        "dynamic_degree_share": float(moves(flow, case.fps)),
    }
