"""Filter: thresholds on stored scores. Scores are kept for every clip, so this runs again without decoding anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

Thresholds = Mapping[str, Mapping[str, float]]


class Filtered(NamedTuple):
    """Why a clip is left out: a reason that many clips may share, and what was found in this one."""

    reason: str
    detail: str


def check_thresholds(thresholds: Thresholds) -> None:
    """Raise if a limit is neither `min` nor `max`, or not a number: a filter with a typing error would never apply."""
    for name, limits in thresholds.items():
        for side, limit in limits.items():
            if side not in ("min", "max"):
                raise ValueError(f"filter.{name}: found {side!r}, expected min or max")
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or math.isnan(limit):
                raise ValueError(f"filter.{name}.{side}: found {limit!r}, expected a number")


def filtered(scores: Mapping[str, float], thresholds: Thresholds) -> Filtered | None:
    """Return the first threshold that a clip does not meet, in their order, or None where it meets all.

    thresholds: `{score: {min: limit, max: limit}}`, limits included. A score that is not a number meets no threshold. A
    score that was never computed is a KeyError: otherwise its filter would pass every clip.
    """
    for name, limits in thresholds.items():
        if name not in scores:
            raise KeyError(f"filter.{name}: found no such score, expected one of {', '.join(sorted(scores))}")
        found = scores[name]
        if found is None or math.isnan(found):
            return Filtered(f"{name} missing", f"found {name} {found}, expected a number")
        for side, limit in limits.items():
            if (side == "min" and found < limit) or (side == "max" and found > limit):
                word = "below" if side == "min" else "above"
                return Filtered(f"{name} {word} {limit:g}", f"found {name} {found:.4g}, {side} {limit:g}")
    return None
