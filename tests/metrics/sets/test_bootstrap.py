from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.sets.bootstrap import estimate
from videodiff.metrics.sets.moments import frechet_distance


def drawn(clips: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(clips, 1, 6)) + shift


def test_the_interval_holds_the_distance_of_the_distributions_as_often_as_it_says() -> None:
    # White Gaussians of width 6, shifted by 0.5: 6 * 0.25. The value of 100 clips is 0.6 too large on average.
    held = sum(
        low <= 1.5 <= high
        for _, _, low, high in (
            estimate(frechet_distance, drawn(100, seed), drawn(100, 10_000 + seed, 0.5), 100, seed)
            for seed in range(60)
        )
    )
    assert 50 <= held <= 60


@pytest.mark.parametrize(("values", "low", "high"), [((10, 1, 3), 20 - 2.95, 20 - 1.05), ((1, 5, 9), 0.0, 0.0)])
def test_the_interval_is_mirrored_at_the_value_and_ends_at_zero(
    values: tuple[int, ...], low: float, high: float
) -> None:
    told = iter(values)
    found = estimate(lambda one, other: float(next(told)), drawn(3, 0), drawn(3, 1), resamples=2)
    # The spread of two numbers is their distance over the root of 2.
    assert found == pytest.approx((values[0], (values[2] - values[1]) / np.sqrt(2), low, high))


def test_the_standard_error_is_the_spread_of_repeated_measurements() -> None:
    again = [estimate(frechet_distance, drawn(200, s), drawn(200, 500 + s, 1.0), 60, s) for s in range(40)]
    assert np.mean([one.stderr for one in again]) == pytest.approx(np.std([one.value for one in again]), rel=0.3)


def test_clips_that_resemble_their_truth_are_drawn_with_it() -> None:
    def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
        truth = drawn(100, seed)
        return truth, 0.9 * truth + np.sqrt(1 - 0.9**2) * drawn(100, 500 + seed) + 0.5

    again = [estimate(frechet_distance, *pair(seed), 60, seed, paired=True) for seed in range(40)]
    assert np.mean([one.stderr for one in again]) == pytest.approx(np.std([one.value for one in again]), rel=0.3)
    assert sum(one.low <= 1.5 <= one.high for one in again) >= 34


def test_frames_of_a_clip_are_drawn_together() -> None:
    # Sixteen equal frames a clip are no more clips than one frame each: the error must be the same.
    one, other = drawn(80, 0), drawn(80, 1, 0.5)
    single = estimate(frechet_distance, one, other, 80)
    many = estimate(frechet_distance, np.repeat(one, 16, axis=1), np.repeat(other, 16, axis=1), 80)
    assert many.value == pytest.approx(single.value)
    assert many.stderr == pytest.approx(single.stderr)


def test_the_same_seed_gives_the_same_interval() -> None:
    one, other = drawn(50, 2), drawn(50, 3)
    assert estimate(frechet_distance, one, other, 20, 7) == estimate(frechet_distance, one, other, 20, 7)
