"""Learning-rate schedules as functions of the optimizer step alone."""

from __future__ import annotations


def warmup_stable_decay(step: int, total: int, warmup: int = 100, decay: float = 0.3, floor: float = 0.0) -> float:
    """Return the factor at `step`: a linear rise over `warmup` steps, then 1, then a linear fall.

    The fall takes the last `decay` share of `total` steps and ends at `floor`.
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    left = (total - step) / max(decay * total, 1)
    return rise * max(floor, min(1.0, left))


def constant(step: int, total: int, warmup: int = 100) -> float:
    """Return the factor at `step`: a linear rise over `warmup` steps, then 1 for ever."""
    return warmup_stable_decay(step, total, warmup, decay=0.0, floor=1.0)
