"""The distance of clips in pixels, on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videodiff.metrics.fidelity import psnr


def test_an_error_of_one_tenth_of_the_range_is_twenty_decibels() -> None:
    truth = np.full((2, 3, 4, 3), 100, dtype=np.uint8)
    assert psnr(truth + np.uint8(25), truth) == pytest.approx(20 * math.log10(255 / 25))


def test_an_error_below_zero_counts_like_one_above() -> None:
    truth = np.full((1, 2, 2, 3), 100, dtype=np.uint8)
    assert psnr(truth - np.uint8(7), truth) == psnr(truth + np.uint8(7), truth)


def test_the_same_clip_has_finite_decibels_and_more_than_any_other() -> None:
    truth = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    other = truth.copy()
    other[0, 0, 0] = 16
    assert math.inf > psnr(truth, truth) > psnr(other, truth)


def test_clips_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"found \(1, 2, 2, 3\), expected \(2, 2, 2, 3\)"):
        psnr(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((2, 2, 2, 3), np.uint8))
