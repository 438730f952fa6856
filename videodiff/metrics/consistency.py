"""Consistency of a clip over time without a network (VBench, arXiv 2311.17982), in [0, 1], 1 for a still clip."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import Case, Quantity, metric


def temporal_flickering(frames: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return VBench's (255 - mean |I_t - I_t+1|) / 255 of frames uint8 `t h w c`, for parts that do not move.

    `where`: bool (t, h, w), the pixels that count, such as the background; a pixel must count in both frames.
    """
    steps = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=-1)
    return close(steps, None if where is None else where[:-1] & where[1:])


def motion_smoothness(frames: np.ndarray) -> float:
    """Return how well odd frames equal the mean of their neighbours: VBench's smoothness without its network."""
    signal = frames.astype(np.float64)
    inner = signal[1:-1:2]
    return close(np.abs(inner - (signal[:-2:2][: len(inner)] + signal[2::2]) / 2).mean(axis=-1))


SCORE = Quantity("higher", "", 0.0, 1.0)


@metric({"temporal_flickering_score": SCORE, "motion_smoothness_score": SCORE})
def consistency(case: Case) -> dict[str, float]:
    """Measure a clip of any task, and the true clip."""
    return {
        "temporal_flickering_score": temporal_flickering(case.frames),
        "motion_smoothness_score": motion_smoothness(case.frames),
    }


def close(error: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return 1 - mean error / 255, averaged by frame as in VBench; 1 for a clip that is too short to change."""
    if where is not None:
        if not where.any(axis=(1, 2)).all():
            raise ValueError("where: found a pair of frames without a common pixel, expected one in each pair")
        return float(np.mean([1 - e[w].mean() / 255 for e, w in zip(error, where, strict=True)])) if len(error) else 1.0
    return float(1 - error.mean() / 255) if len(error) else 1.0
