"""Speeds that are fitted to timed passes are those that the passes had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from videodiff.planning.forecast.calibration import Pace, fit, once, settled
from videodiff.planning.forecast.hardware import waited
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
    pace = Pace()
    found, plain = settled([once(network, lambda: network(torch.ones(512, 64)).sum(), pace) for _ in range(3)])
    assert 0 < sum(seconds for *_, seconds in found) <= plain * 1.0001
    assert {kind.width for kind, flops, *_ in found if flops} == {64}


def test_a_slower_machine_has_the_same_time_in_paces() -> None:
    def rounds(slow: float) -> float:
        network = nn.Linear(256, 256)
        return settled([once(network, lambda: network(torch.ones(4096, 256)).sum(), lambda: slow) for _ in range(3)])[1]

    assert rounds(2.0) == pytest.approx(rounds(1.0) / 2, rel=0.5)


def test_a_small_operation_takes_as_long_as_its_call_and_a_large_one_as_its_bytes() -> None:
    # A call of a microsecond, and then 10 GB a second.
    usual = {at: at / (1e-6 + at / 1e10) for at in (2**10, 2**20, 2**24)}
    found = waited(usual, np.array([0, 16, 2**20, 2**26]), usual)
    assert found == pytest.approx([0, 1e-6 + 2**10 / 1e10, 1e-6 + 2**20 / 1e10, 1e-6 + 2**26 / 1e10], rel=1e-3)


def test_an_operation_that_was_measured_small_does_not_stay_slow() -> None:
    # 512 bytes tell how long a call takes; four million are not 8,192 calls.
    usual = {2**10: 1e9, 2**22: 1e10}
    (found,) = waited({256: 256 / 2e-6, 512: 512 / 2e-6}, np.array([2**22]), usual)
    assert found == pytest.approx(2e-6 + 2**22 / 1e10, rel=1e-3)
