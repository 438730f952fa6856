"""Simulated days agree with the closed form, and more cards meet more faults."""

from __future__ import annotations

import pytest

from videodiff.planning.forecast.faults import saving
from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.scaling import simulate, slowest


def cluster(nodes: int, faults: float) -> Cluster:
    """Return nodes of eight cards."""
    return Cluster("card", nodes, 8, 80, {"half": 900, "full": 60}, {64: 0.5}, 3000, 300, 40, faults=faults)


def test_without_faults_only_saving_takes_time() -> None:
    found = simulate(0.5, cluster(1, 0.0), 10**9, days=3)
    assert (found.faults, found.repeated, found.started) == (0, 0, 0)
    assert found.steps * 0.5 + found.saved == pytest.approx(found.seconds)


def test_many_simulated_days_lose_what_the_closed_form_says() -> None:
    here = cluster(512, 2.0)
    wanted = saving(here, 10**9)
    found = simulate(0.5, here, 10**9, days=2000)
    assert found.faults == pytest.approx(found.seconds / wanted.between, rel=0.03)
    assert 1 - found.useful == pytest.approx(wanted.lost, rel=0.03)
    assert found.useful * found.seconds == pytest.approx(found.steps * 0.5)


def test_more_nodes_wait_longer_for_the_slowest_and_lose_more() -> None:
    assert slowest(1.0, 1) == 1.0 < slowest(1.0, 8) < slowest(1.0, 512) < 1.05
    small, large = (simulate(0.5, cluster(nodes, 0.2), 10**9, days=365).useful for nodes in (1, 512))
    assert large < small
