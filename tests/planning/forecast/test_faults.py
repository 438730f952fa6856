"""The interval of checkpoints is the best one, and what faults cost is what they cost in a simulated year."""

from __future__ import annotations

import numpy as np
import pytest

from videodiff.planning.forecast.faults import best_interval, lost, restart
from videodiff.planning.forecast.hardware import Cluster


@pytest.mark.parametrize(("blocked", "between"), [(1.0, 1e6), (30.0, 1e5), (10.0, 1e4)])
def test_no_other_interval_loses_less(blocked: float, between: float) -> None:
    intervals = np.geomspace(1, between, 20_000)
    best = min(lost(i, blocked, between, 300.0) for i in intervals)
    assert lost(best_interval(blocked, between), blocked, between, 300.0) == pytest.approx(best, rel=0.02)


def test_the_closed_form_is_the_mean_of_many_faults() -> None:
    interval, blocked, between, restart = 600.0, 20.0, 4000.0, 300.0
    draw, clock, done, fault = np.random.default_rng(0), 0.0, 0, 0.0
    fault = draw.exponential(between)
    while done < 20_000:
        end = clock + interval + blocked
        if end <= fault:
            clock, done = end, done + 1
            continue
        # A start may meet a fault as well: it begins again.
        clock, fault = fault, fault + draw.exponential(between)
        while fault < clock + restart:
            clock, fault = fault, fault + draw.exponential(between)
        clock += restart
    assert 1 - done * interval / clock == pytest.approx(lost(interval, blocked, between, restart), rel=0.03)


def test_a_job_that_starts_again_reads_its_state_on_all_nodes() -> None:
    cluster = Cluster("card", 8, 8, 80, {"half": 900, "full": 60}, {64: 0.5}, 3000, 300, 40, storage_gb_per_s=2.0)
    # Weight, two moments and average of a billion weights, 16 GB, at 2 GB/s for each of eight nodes.
    assert restart(cluster, 10**9) == pytest.approx(60 * cluster.restart_minutes + 1.0)


def test_faults_that_come_faster_than_work_leave_nothing() -> None:
    assert lost(1e6, 1.0, 10.0, 300.0) == 1.0
