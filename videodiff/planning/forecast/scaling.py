"""A training on more and more cards, day by day: the slowest node of each step, checkpoints, and faults by chance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from videodiff.planning.forecast.choice import Job, Plan, best
from videodiff.planning.forecast.faults import restart, saving
from videodiff.planning.forecast.hardware import Cluster

# How much the time of a step of one node varies: an assumption.
VARIES = 0.01


class Simulated(NamedTuple):
    """Some days of a training: steps that stayed, faults, and the seconds of saving, of repeated work and of starts."""

    seconds: float
    steps: float
    faults: int
    saved: float
    repeated: float
    started: float

    @property
    def useful(self) -> float:
        """The share of the time that moved the training on."""
        return 1 - (self.saved + self.repeated + self.started) / self.seconds


class Size(NamedTuple):
    """A number of cards: its best plan, and what came of its days."""

    cards: int
    plan: Plan
    days: Simulated
    tokens: float


def slowest(step: float, nodes: int) -> float:
    """Return the time of a step that ends when the slowest of some nodes has ended."""
    return step * (1 + VARIES * math.sqrt(2 * math.log(max(nodes, 1))))


def simulate(step: float, cluster: Cluster, weights: int, days: float, seed: int = 0) -> Simulated:
    """Return some days of steps of so many seconds, saved as often as is best; faults repeat what was not saved."""
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
        begins = clock + restart(cluster, saved.size)
        while (fault := clock + draw.exponential(saved.between)) < begins:
            # A start may meet a fault too, and begins again.
            started += fault - clock
            clock, faults, begins = fault, faults + 1, fault + restart(cluster, saved.size)
        started, clock = started + begins - clock, begins
    return Simulated(clock, kept / step, faults, pause, repeated, started)


def grown(job: Job, cluster: Cluster, cards: int, each: int, days: float = 30.0) -> Size | None:
    """Return a training whose batch grows with its cards, `each` clips a card; None where it fits in no way."""
    here = Cluster(**{**vars(cluster), "nodes": max(cards // cluster.cards, 1), "cards": min(cards, cluster.cards)})
    larger = replace(job, shapes=[shape._replace(global_batch=each * cards) for shape in job.shapes])
    plan = best(larger, here)
    if plan is None:
        return None
    step = slowest(plan.seconds.total, here.nodes)
    weights = job.trace(plan.choice.recompute, job.half and plan.choice.strategy.startswith("zero")).weights.all
    found = simulate(step, here, weights, days)
    tokens = found.steps * larger.largest.tokens * larger.largest.global_batch / found.seconds / cards
    return Size(cards, plan, found, tokens)
