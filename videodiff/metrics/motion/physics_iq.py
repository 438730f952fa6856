"""Physics-IQ's four numbers (arXiv 2501.09038): where, when and how much something moves, compared by masks of motion.

No network is needed. A mask marks the pixels that differ from a running average of the frames so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videodiff.metrics.metric import CONTINUATION, Case, Quantity, metric
from videodiff.metrics.weights import Weights

# As in the benchmark: weight of a new frame in the average, levels that count as change, side of blur and of clean-up.
RATE, CHANGE, SIDE = 0.3, 10, 5
NUMBERS = ("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou", "mse")


def motion_masks(frames: np.ndarray) -> np.ndarray:
    """Return where a clip uint8 `t h w c` moves, bool (t, h, w); the first frame is background, without motion."""
    import cv2

    kernel = np.ones((SIDE, SIDE), np.uint8)
    grey = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), 0) for frame in frames]
    average, masks = grey[0].astype(np.float64), [np.zeros(grey[0].shape, bool)]
    for now in grey[1:]:
        cv2.accumulateWeighted(now, average, RATE)
        changed = (cv2.absdiff(now, cv2.convertScaleAbs(average)) > CHANGE).astype(np.uint8)
        opened = cv2.morphologyEx(changed, cv2.MORPH_OPEN, kernel)
        masks.append(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel) > 0)
    return np.stack(masks)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return intersection over union of two masks or of two weights, 1 where both are empty."""
    union = np.maximum(one, other).sum()
    return float(np.minimum(one, other).sum() / union) if union else 1.0


def compared(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return the four numbers of two clips uint8 `t h w c` of one shape.

    spatial_iou: where anything ever moves; spatiotemporal_iou: the mean over the frames; weighted_spatial_iou: how
    often each pixel moves; mse: squared difference of levels in [0, 1].
    """
    if one.shape != other.shape:
        raise ValueError(f"frames: found {one.shape} and {other.shape}, expected one shape")
    masks, others = motion_masks(one), motion_masks(other)
    return {
        "spatial_iou": overlap(masks.any(axis=0), others.any(axis=0)),
        "spatiotemporal_iou": float(np.mean([overlap(a, b) for a, b in zip(masks, others, strict=True)])),
        "weighted_spatial_iou": overlap(masks.mean(axis=0), others.mean(axis=0)),
        "mse": float(np.square(one / 255.0 - other / 255.0).mean()),
    }


@dataclass(frozen=True)
class Scenario:
    """One view of a scenario: the sampled clip against the first take, and the two takes against each other."""

    made: dict[str, float]
    takes: dict[str, float]


def scenario(made: np.ndarray, first: np.ndarray, second: np.ndarray) -> Scenario:
    """Compare a sampled clip with two takes of the same scenario."""
    return Scenario(compared(made, first), compared(first, second))


def score(scenarios: Sequence[Scenario]) -> float:
    """Return the benchmark's score in percent, 0 to 100; a second real take would reach 100.

    All numbers are first averaged over the scenarios. The score is the mean of the three overlaps, each divided by the
    overlap of the takes, minus the error beyond that of the takes.
    """
    if not scenarios:
        raise ValueError("scenarios: found none, expected at least one")
    made = {name: float(np.mean([one.made[name] for one in scenarios])) for name in NUMBERS}
    takes = {name: float(np.mean([one.takes[name] for one in scenarios])) for name in NUMBERS}
    if not all(takes[name] for name in NUMBERS[:3]):
        raise ValueError("takes: found two takes whose motion never overlaps, expected takes of one scenario")
    likeness = np.mean([made[name] / takes[name] for name in NUMBERS[:3]])
    return float(100 * np.clip(likeness - (made["mse"] - takes["mse"]), 0.0, 1.0))


SHARE = Quantity("higher", "", 0.0, 1.0)


def numbered(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the four numbers under the names that they have in evaluation.json."""
    return {f"physics_iq_{name}": value for name, value in compared(frames, truth).items()}


def held(case: Case) -> dict[str, float]:
    """Measure the clip that holds the last given frame."""
    frames = case.truth.copy()
    frames[case.given :] = case.truth[case.given - 1]
    return numbered(frames, case.truth)


@metric(
    {f"physics_iq_{name}": Quantity("lower", "", 0.0, 1.0) if name == "mse" else SHARE for name in NUMBERS},
    tasks=(CONTINUATION,),
    references={"last frame held": held},
    weights=Weights(modules=("cv2",)),
)
def physics_iq(case: Case) -> dict[str, float]:
    """Measure a continuation, given frames included, against the one true take; no second take divides it."""
    return numbered(case.frames, case.truth)
