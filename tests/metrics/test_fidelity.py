"""The distance of clips in pixels, on cases whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from videodiff.metrics.evaluation import evaluate
from videodiff.metrics.fidelity import fidelity, psnr, ssim_by_frame
from videodiff.metrics.metric import Case


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


@pytest.mark.parametrize("measure", [psnr, ssim_by_frame])
def test_clips_of_other_shapes_are_not_compared(measure: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"found \(1, 2, 2, 3\), expected \(2, 2, 2, 3\)"):
        measure(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((2, 2, 2, 3), np.uint8))


def windows(x: np.ndarray, y: np.ndarray) -> float:
    """Return the SSIM of two pictures `h w`, window by window, as the paper writes it (eq. 13-16)."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11].astype(float), y[i : i + 11, j : j + 11].astype(float)
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
            cross = (weight * (a - ma) * (b - mb)).sum()
            found.append((2 * ma * mb + c1) * (2 * cross + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


def test_ssim_is_what_the_paper_says_window_by_window() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, 14, 16, 3), dtype=np.uint8)
    frames = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    expected = [np.mean([windows(a[..., c], b[..., c]) for c in range(3)]) for a, b in zip(frames, truth, strict=True)]
    np.testing.assert_allclose(ssim_by_frame(frames, truth), expected, rtol=1e-9)


def test_ssim_of_a_copy_is_one_and_of_the_negative_is_below_zero() -> None:
    truth = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert ssim_by_frame(truth, truth)[0] == pytest.approx(1.0)
    assert ssim_by_frame(255 - truth, truth)[0] < 0


def test_flat_pictures_are_compared_by_their_level_alone() -> None:
    # No variance on either side: what is left is (2 a b + c1) / (a^2 + b^2 + c1).
    flat = [np.full((1, 12, 12, 3), level, dtype=np.uint8) for level in (100, 150)]
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert ssim_by_frame(*flat)[0] == pytest.approx(expected)


def test_a_continuation_is_measured_frame_by_frame() -> None:
    truth = np.full((4, 12, 12, 3), 100, dtype=np.uint8)
    made = truth.copy()
    made[2], made[3] = 110, 125
    found = evaluate({"f": fidelity}, [Case("a", truth, truth, "", 8.0, 1, None)], {"continuation": [made]})
    assert found["curves"]["psnr"]["mean"] == pytest.approx(
        [20 * math.log10(255 / 0.5), 20 * math.log10(255 / 10), 20 * math.log10(255 / 25)]
    )
    assert len(found["curves"]["ssim"]["mean"]) == 3


def test_the_last_given_frame_held_stands_beside_it() -> None:
    truth = np.stack([np.full((12, 12, 3), level, dtype=np.uint8) for level in (100, 110, 120, 140)])
    found = evaluate({"f": fidelity}, [Case("a", truth, truth, "", 8.0, 2, None)], {"continuation": [truth]})
    assert found["psnr_static"] == pytest.approx(10 * math.log10(255**2 / ((10**2 + 30**2) / 2)))


def test_pictures_smaller_than_the_window_have_no_ssim() -> None:
    truth = np.zeros((3, 8, 8, 3), np.uint8)
    found = evaluate({"f": fidelity}, [Case("a", truth, truth, "", 8.0, 1, None)], {"continuation": [truth]})
    assert "ssim" not in found
    with pytest.raises(ValueError, match="found 8 x 8, expected at least 11 x 11"):
        ssim_by_frame(truth, truth)
