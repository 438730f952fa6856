"""How often to save, and what faults and saving cost: Young and Daly's interval (Daly 2006, FGCS 22(3), eq. 20)."""

from __future__ import annotations

import math
from typing import NamedTuple

from videodiff.planning.forecast.hardware import Cluster

YEAR = 365.25 * 86400
# Of a weight in a checkpoint: weight, two moments and average in the state, and the average again in a file of its own.
BYTES_OF_STATE, BYTES_OF_AVERAGE = 16, 4


class Saving(NamedTuple):
    """A checkpoint: its bytes, the seconds that training waits for it, and the seconds until it is written.

    between: mean seconds between two faults of the job; interval: seconds from one checkpoint to the next; lost: the
    share of the time that goes to saving, to repeated steps and to starts.
    """

    size: float
    blocked: float
    written: float
    between: float
    interval: float
    lost: float


def saving(cluster: Cluster, weights: int) -> Saving:
    """Return the best interval of checkpoints and its cost, by AdamW in float32.

    Each process saves its share of the state, then the first one writes the average. Training waits only for the copy
    of the state to the host.
    """
    state, average = float(BYTES_OF_STATE * weights), float(BYTES_OF_AVERAGE * weights)
    written = (state / cluster.nodes + average) / (1e9 * cluster.storage_gb_per_s)
    blocked = cluster.stall_s + state / cluster.world / (1e9 * cluster.host_gb_per_s)
    between = YEAR / max(cluster.faults * cluster.world, 1e-9)
    # Two saves must not overlap.
    interval = max(best_interval(blocked, between), written, 1.0)
    share = lost(interval, blocked, between, restart(cluster, weights))
    return Saving(state + average, blocked, written, between, interval, share)


def restart(cluster: Cluster, weights: int) -> float:
    """Return the seconds from a fault to the next step: the job starts again and reads its state."""
    return 60 * cluster.restart_minutes + BYTES_OF_STATE * weights / (1e9 * cluster.storage_gb_per_s * cluster.nodes)


def best_interval(blocked: float, between: float) -> float:
    """Return the seconds of work between checkpoints that lose least, to first order."""
    return math.sqrt(2 * blocked * between)


def lost(interval: float, blocked: float, between: float, restart: float) -> float:
    """Return the share of time that brings no new step, at most 1.

    Faults are random, with a mean of `between` seconds from one to the next. After a fault the work since the last
    checkpoint is done again. The closed form is exact (Daly 2006, eq. 13).
    """
    if interval + blocked + restart > 100 * between:
        return 1.0
    return 1 - interval / (between * math.exp(restart / between) * math.expm1((interval + blocked) / between))
