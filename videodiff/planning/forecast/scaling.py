"""Simulate a training on more and more cards: the slowest node of each step, checkpoints, and random faults."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from videodiff.planning.forecast.choice import Job, Plan, best
from videodiff.planning.forecast.faults import restart, saving
from videodiff.planning.forecast.hardware import Cluster

# The relative spread of one node's step time: an assumption.
VARIES = 0.01


class Simulated(NamedTuple):
    """Some days of a training: kept steps, faults, and the seconds of saving, of repeated work and of starts."""

    seconds: float
    steps: float
    faults: int
    saved: float
    repeated: float
    started: float

    @property
    def useful(self) -> float:
        """The share of the time that brought new steps."""
        return 1 - (self.saved + self.repeated + self.started) / self.seconds


class Size(NamedTuple):
    """A number of cards, its best plan, the simulated days, and the tokens a second and card."""

    cards: int
    plan: Plan
    days: Simulated
    tokens: float


def slowest(step: float, nodes: int) -> float:
    """Return the expected time of a step that waits for the slowest of `nodes` nodes."""
    return step * (1 + VARIES * math.sqrt(2 * math.log(max(nodes, 1))))


def simulate(step: float, cluster: Cluster, weights: int, days: float, seed: int = 0) -> Simulated:
    """Simulate `days` days of steps of `step` seconds each, saved at the best interval; faults repeat unsaved work."""
    draw, saved = np.random.default_rng(seed), saving(cluster, weights)
    end, clock, kept, faults = 86400 * days, 0.0, 0.0, 0
    pause = repeated = started = 0.0
    fault = draw.exponential(saved.between)
    while clock < end:
        done = clock + saved.interval + saved.blocked
        if done <= fault:
            clock, kept, pause = done, kept + saved.interval, pause + saved.blocked
            continue
        repeated, clock, faults = repeated + fault - clock, fault, faults + 1
        begins = clock + restart(cluster, weights)
        while (fault := clock + draw.exponential(saved.between)) < begins:
            # A fault may also hit a start, which then begins again.
            started += fault - clock
            clock, faults, begins = fault, faults + 1, fault + restart(cluster, weights)
        started, clock = started + begins - clock, begins
    return Simulated(clock, kept / step, faults, pause, repeated, started)


def grown(job: Job, cluster: Cluster, cards: int, each: int, days: float = 30.0) -> Size | None:
    """Return a training of `each` clips a card on `cards` cards, or None if no plan fits."""
    here = replace(cluster, nodes=max(cards // cluster.cards, 1), cards=min(cards, cluster.cards))
    larger = replace(job, shapes=[shape._replace(global_batch=each * cards) for shape in job.shapes])
    plan = best(larger, here)
    if plan is None:
        return None
    step = slowest(plan.seconds.total, here.nodes)
    found = simulate(step, here, job.weights(plan.choice).saved, days)
    tokens = found.steps * each * larger.mean(shape.tokens for shape in larger.shapes) / found.seconds
    return Size(cards, plan, found, tokens)
