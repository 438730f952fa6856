"""Speeds that are fitted to timed passes are those that the passes had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from videodiff.planning.forecast.calibration import fit, once
from videodiff.planning.forecast.trace import Kind


def test_a_fit_finds_the_speeds_of_made_passes() -> None:
    operations = [(Kind("mm", 64), 2e9, 1, 1.0), (Kind("mm", 64), 4e9, 1, 2.0), (Kind("mm", 64, True), 8e9, 1, 1.0)]
    operations += [(Kind("add"), 0.0, 4096, 1e-3), (Kind("add"), 0.0, 1 << 20, 1e-2)]
    speed = fit([(operations, sum(one[3] for one in operations) + 5e-5)])
    assert speed.products == {False: {64: 2e9}, True: {64: 8e9}}
    assert speed.kinds["add"] == pytest.approx({4096: 4096e3, 1 << 20: (1 << 20) * 100})
    assert speed.launch == pytest.approx(1e-5)


def test_the_seconds_of_operations_are_at_most_those_of_the_pass() -> None:
    network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    found, plain = once(network, lambda: network(torch.ones(512, 64)).sum(), rounds=3)
    assert 0 < sum(seconds for *_, seconds in found) <= plain * 1.0001
    assert {kind.width for kind, flops, *_ in found if flops} == {64}
