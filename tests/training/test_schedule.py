"""Learning-rate schedules: rise, plateau, fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videodiff.training.schedule import constant, warmup_stable_decay


def test_the_rate_rises_evenly_over_the_warmup_and_never_begins_at_zero() -> None:
    factors = [warmup_stable_decay(step, total=1000, warmup=10) for step in range(12)]
    assert factors == pytest.approx([*[(step + 1) / 10 for step in range(10)], 1.0, 1.0])


def test_the_rate_is_flat_until_the_last_share_and_then_falls_evenly() -> None:
    total, decay = 1000, 0.2
    factors = [warmup_stable_decay(step, total, warmup=10, decay=decay) for step in range(total + 1)]
    assert set(factors[10:801]) == {1.0}
    assert factors[801:] == pytest.approx([(total - step) / 200 for step in range(801, 1001)])


def test_the_rate_ends_at_the_floor() -> None:
    factors = [warmup_stable_decay(step, 100, warmup=1, decay=0.5, floor=0.1) for step in range(101)]
    assert factors[-1] == 0.1
    assert min(factors) == 0.1


@given(
    step=st.integers(0, 2000), total=st.integers(1, 2000), warmup=st.integers(0, 300), decay=st.floats(0, 1),
    floor=st.floats(0, 1),
)  # fmt: skip
def test_the_factor_never_leaves_the_unit_interval(
    step: int, total: int, warmup: int, decay: float, floor: float
) -> None:
    assert 0 <= warmup_stable_decay(step, total, warmup, decay, floor) <= 1


def test_constant_rises_and_stays_beyond_the_end() -> None:
    factors = [constant(step, total=50, warmup=4) for step in range(100)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 97])
