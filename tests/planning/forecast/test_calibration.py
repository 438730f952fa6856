"""Speeds that are fitted to timed passes are those that the passes had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from videodiff.planning.forecast.calibration import Pace, fit, once
from videodiff.planning.forecast.trace import Kind


def test_a_fit_finds_the_speeds_of_made_passes() -> None:
    operations = [(Kind("mm", 64), 2e9, 1, 1.0), (Kind("mm", 64), 6e9, 1, 1.0), (Kind("mm", 64, True), 8e9, 1, 1.0)]
    operations += [(Kind("bmm", 64), 1e9, 1, 1.0), (Kind("add"), 0.0, 4096, 1e-3), (Kind("add"), 0.0, 1 << 20, 1e-2)]
    # So small a product tells how long a call takes, not how fast products are.
    operations += [(Kind("mm", 64), 1e3, 1, 1.0)]
    speed = fit([(operations, sum(one[3] for one in operations) + 7e-5)])
    assert speed.tables["products"] == {64: 4e9}
    assert speed.tables["products of 16 bits"] == {64: 8e9}
    assert speed.tables["small products"] == {64: 1e9}
    assert speed.tables["add"] == pytest.approx({4096: 4096e3, 1 << 20: (1 << 20) * 100})
    assert speed.launch == pytest.approx(1e-5)


def test_the_seconds_of_operations_are_at_most_those_of_the_pass() -> None:
    network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    found, plain = once(network, lambda: network(torch.ones(512, 64)).sum(), Pace(), rounds=3)
    assert 0 < sum(seconds for *_, seconds in found) <= plain * 1.0001
    assert {kind.width for kind, flops, *_ in found if flops} == {64}


def test_a_slower_machine_has_the_same_time_in_paces() -> None:
    def rounds(slow: float) -> float:
        network = nn.Linear(256, 256)
        return once(network, lambda: network(torch.ones(4096, 256)).sum(), lambda: slow, rounds=3)[1]

    assert rounds(2.0) == pytest.approx(rounds(1.0) / 2, rel=0.5)
