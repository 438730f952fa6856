"""A steady clock for frames of uneven times: its rate, and which frame each of its ticks shows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.data.video.timing import clock_ticks, end_of, is_even, lay, usual_rate


def at(seconds) -> np.ndarray:
    """Return microseconds."""
    return np.round(np.asarray(seconds, float) * 1e6).astype(np.int64)


FRAMES = np.arange(120)
KINDS = {
    "thirty": (FRAMES / 30, 30),
    "film on television": (FRAMES * 1001 / 24000, Fraction(24000, 1001)),
    "some are missing": (FRAMES[FRAMES % 7 > 0] * 1001 / 30000, Fraction(30000, 1001)),
    "some are missing, in milliseconds": (np.round(FRAMES[FRAMES % 7 > 0] * 1001 / 30) / 1000, Fraction(30000, 1001)),
    "most are missing": (np.array([0, 1, 3, 8, 9, 14, 15, 17, 22, 27, 28, 29, 34]) / 25, 25),
    "pairs": (np.sort(np.concatenate([FRAMES / 15, FRAMES / 15 + 1 / 90_000])), 30),
    "threes": (np.sort(np.concatenate([FRAMES / 10 + late / 1000 for late in range(3)])), 30),
    "two fields, then three": (np.cumsum(np.where(FRAMES % 2, 2, 3)) / 60, 24),
    "a second of frames at a time, as a network brings them": (FRAMES // 30 + FRAMES % 30 / 3000, 30),
    "fives, and a long pause": (FRAMES // 5 / 6 + FRAMES % 5 / 90_000 + 60 * (FRAMES >= 50), 30),
    "bursts of sixty a second": ((FRAMES % 20) / 60 + 5 * (FRAMES // 20), 60),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_the_one_that_the_frames_fit(kind):
    seconds, rate = KINDS[kind]
    assert usual_rate(at(seconds)) == pytest.approx(rate, rel=1e-9)


def test_frames_at_one_moment_have_no_rate():
    with pytest.raises(ValueError, match="two moments"):
        usual_rate(np.array([5, 5]))


def test_even_is_what_may_be_played_at_the_mean_rate():
    assert is_even(at(FRAMES * 1001 / 30000))
    assert is_even(at(np.round(FRAMES * 1001 / 30000, 3)))
    assert is_even(at(np.cumsum(np.where(FRAMES % 2, 2, 3)) / 60))
    assert not is_even(at(np.delete(FRAMES, 50) / 30))
    assert not is_even(at([*FRAMES / 24, *(5 + FRAMES / 30)]))
    assert not is_even(at(KINDS["pairs"][0]))


def test_the_last_frame_stays_for_the_usual_gap_or_a_pause():
    assert end_of(at([0, 0.5, 1]), 0, Fraction(2)) == 1_500_000
    assert end_of(at([0, 0.5, 1]), 600_000, Fraction(2)) == 1_500_000
    assert end_of(at([0, 0.5, 1]), 3_000_000, Fraction(2)) == 4_000_000
    assert end_of(at([2]), 9_000_000, Fraction(4)) == 2_250_000


def test_a_rate_that_the_times_contradict_is_not_believed():
    times = at(np.arange(50) / 25)
    assert clock_ticks(times, 40_000, Fraction(60_000)) == (None, 25)
    assert clock_ticks(times, 40_000, Fraction(25)) == (None, 25)
    assert clock_ticks(at(FRAMES * 1001 / 30000), 33_367, Fraction(30000, 1001)) == (None, Fraction(30000, 1001))
    assert clock_ticks(at([0]), 4_000_000, Fraction(25)) == (None, 25)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 400_000), min_size=1, max_size=40),
    st.integers(0, 300_000),
    st.sampled_from([Fraction(8), Fraction(30000, 1001), Fraction(120)]),
)
def test_a_tick_shows_the_newest_frame_of_its_moment(gaps, tail, rate):
    times = np.cumsum(gaps)
    start, end = int(times[0]), int(times[-1]) + tail
    places = lay(times, start, end, rate)
    assert len(places) == max(round((end - start) * rate / 10**6), 1)
    for tick, place in enumerate(places):
        latest = start + (tick + 0.5) * 1e6 / rate
        due = [number for number, time in enumerate(times) if time < latest]
        # A hundredth of a tick is forgiven, and several frames may lie in it.
        sure = [number for number, time in enumerate(times) if time < latest - 0.011e6 / rate]
        assert max(sure, default=0) <= place <= max(due, default=0)
