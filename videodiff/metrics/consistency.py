"""Consistency of a clip over time without a network (VBench, arXiv 2311.17982), in [0, 1], 1 for a still clip."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import Case, Quantity, metric


def temporal_flickering(frames: np.ndarray) -> float:
    """Return VBench's (255 - mean |I_t - I_t+1|) / 255 of frames uint8 `t h w c`."""
    return close(np.abs(np.diff(frames.astype(np.float64), axis=0)))


def motion_smoothness(frames: np.ndarray) -> float:
    """Return how well odd frames equal the mean of their neighbours: VBench's smoothness without its network."""
    signal = frames.astype(np.float64)
    inner = signal[1:-1:2]
    return close(np.abs(inner - (signal[:-2:2][: len(inner)] + signal[2::2]) / 2))


SCORE = Quantity("higher", "", 0.0, 1.0)


@metric({"temporal_flickering_score": SCORE, "motion_smoothness_score": SCORE})
def consistency(case: Case) -> dict[str, float]:
    """Measure a clip of any task, and the true clip."""
    return {
        "temporal_flickering_score": temporal_flickering(case.frames),
        "motion_smoothness_score": motion_smoothness(case.frames),
    }


def close(error: np.ndarray) -> float:
    """Return 1 - mean error / 255; 1 for a clip that is too short to change."""
    return float(1 - error.mean() / 255) if len(error) else 1.0
