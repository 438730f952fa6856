"""Whether balls fly as the law of their world has it, read from a few frames, without knowing how the clip began.

Two positions of a ball give its velocity, if it touched nothing between them. From each two frames the law is followed
forward and, with the velocity turned round, backward; the flight that comes nearest to all frames counts. So a true
clip is followed through its contacts, and no flight fits a ball that jumps, or turns where nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from videodiff.metrics.worlds.captions import Phrase
from videodiff.worlds.flight import CrampedError, advance
from videodiff.worlds.law import Law

MARGIN = 0.25


class Flight(NamedTuple):
    """The lawful flight that comes nearest to what is seen.

    distance (t, n): how far each ball is from it, in units; speed: the root of the mean squared speed of the balls,
    weighted by their mass, in units/s. Contacts change the speed of a ball, but not this one.
    """

    distance: np.ndarray
    speed: float


def nearest_flight(position: np.ndarray, radius: np.ndarray, fps: float, law: Law) -> Flight | None:
    """Return the flight by the law that comes nearest to the positions (t, n, 2) of balls of these radii (n,).

    None if there is no such flight: a failed sample may show balls that do not fit between the walls.
    """
    times = np.arange(len(position)) / fps
    mass = radius**2 / (radius**2).sum()
    found = []
    for i, j in combinations(range(len(position)), 2):
        velocity = (position[j] - position[i]) * fps / (j - i)
        try:
            before, _ = advance(law, position[i], -velocity, radius, times[: i + 1])
            after, _ = advance(law, position[i], velocity, radius, times[: len(times) - i])
        except CrampedError:
            continue
        path = np.concatenate([before[:0:-1], after])
        speed = float(np.sqrt(mass @ (velocity**2).sum(axis=-1)))
        found.append(Flight(np.linalg.norm(path - position, axis=-1), speed))
    return min(found, key=lambda flight: float(flight.distance.max()), default=None)


def pace_of(asked: Sequence[Phrase], radius: np.ndarray, law: Law) -> tuple[float, float]:
    """Return the range of the speed, as in `Flight`, that the captions of balls of these radii (n,) allow."""
    mass = radius**2 / (radius**2).sum()
    ranges = np.array([law.grammar.paces[phrase.pace] if phrase.pace else law.speeds for phrase in asked])
    low, high = np.sqrt(mass @ ranges**2)
    return float(low), float(high)


def measure_flight(
    position: np.ndarray, radius: np.ndarray, asked: Sequence[Phrase], fps: float, law: Law
) -> dict[str, float]:
    """Return how lawful the flight through a few frames is; positions (t, n, 2) may be NaN for balls that are unseen.

    law_error: the mean distance of the balls from the nearest lawful flight, as a share of the way that they go in
    that time at the speed of the caption. motion_accuracy: 1 if no ball is ever farther from it than a quarter of the
    way, and the speed is that of the caption, with a quarter of freedom. Balls that are unseen, or have no room to fly,
    are wrong: 1 and 0.
    """
    seen = not np.isnan(position).any() and bool((radius > 0).all())
    flight = nearest_flight(position, radius, fps, law) if seen else None
    if flight is None:
        return {"law_error": 1.0, "motion_accuracy": 0.0}
    low, high = pace_of(asked, radius, law)
    way = (low + high) / 2 * (len(position) - 1) / fps
    kept = low * (1 - MARGIN) <= flight.speed <= high * (1 + MARGIN)
    return {
        "law_error": float(flight.distance.mean() / way),
        "motion_accuracy": float(kept and flight.distance.max() <= MARGIN * way),
    }
