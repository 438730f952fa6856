"""Moments and the Fréchet distance, on Gaussians with a distance in closed form, and beside StyleGAN-V's formula."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from videodiff.metrics.sets.moments import frechet, frechet_distance, moments


def gaussian(rows: int, width: int, seed: int) -> np.ndarray:
    """Return correlated rows, scaled and off the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)) + 3 * rng.normal(size=width)


def published(one: np.ndarray, other: np.ndarray) -> float:
    """Return the distance by StyleGAN-V's formula: raw moments divided by the count, scipy's root of the product."""
    mean, cov = [], []
    for rows in (one, other):
        m = rows.sum(axis=0) / len(rows)
        mean.append(m)
        cov.append(rows.T @ rows / len(rows) - np.outer(m, m))
    root = scipy.linalg.sqrtm(cov[0] @ cov[1])
    return float(np.real(np.square(mean[0] - mean[1]).sum() + np.trace(cov[0] + cov[1] - 2 * root)))


@pytest.mark.parametrize(("rows", "width"), [(40, 3), (500, 64), (90, 128)])
def test_the_distance_is_that_of_the_published_formula(rows: int, width: int) -> None:
    one, other = gaussian(rows, width, 0), gaussian(rows + 7, width, 1)
    expected = published(one, other)
    # scipy's root of a singular product is itself only good to a few digits: 90 rows have no rank of 128.
    assert frechet(moments(one), moments(other)) == pytest.approx(expected, rel=1e-3 if width > rows else 1e-6)


def test_a_shift_costs_its_square_and_a_scale_the_change_of_spread() -> None:
    rows, shift = gaussian(200, 16, 2), np.arange(16) / 10
    assert frechet(moments(rows), moments(rows + shift)) == pytest.approx((shift**2).sum(), rel=1e-9)
    spread = np.trace(moments(rows).covariance)
    about = moments(rows).mean
    assert frechet(moments(rows), moments(about + 1.5 * (rows - about))) == pytest.approx(0.25 * spread, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself() -> None:
    rows = gaussian(300, 32, 3)
    assert frechet(moments(rows), moments(rows)) == pytest.approx(0.0, abs=1e-6 * np.trace(moments(rows).covariance))


def test_two_halves_of_one_distribution_are_as_far_apart_as_chance_makes_them() -> None:
    # Of white rows: the means differ by width (1/n + 1/m), the covariances by a quarter of their squared difference.
    width, n = 12, 400
    rng = np.random.default_rng(4)
    found = [frechet(moments(rng.normal(size=(n, width))), moments(rng.normal(size=(n, width)))) for _ in range(40)]
    expected = width * 2 / n + (width**2 + width) / 4 * 2 / n
    assert np.mean(found) == pytest.approx(expected, rel=0.08)


def test_noise_is_as_far_as_two_gaussians_of_its_spread() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(20_000, 5)), 3 * rng.normal(size=(20_000, 5)) + 2
    # (3 - 1)^2 of spread and 2^2 of mean, in each of five directions.
    assert frechet(moments(one), moments(other)) == pytest.approx(5 * (4 + 4), rel=0.02)


def test_a_mean_far_from_the_origin_costs_no_digits() -> None:
    # Raw sums of squares would leave nothing of the spread: 1e8 squared has sixteen digits.
    rows = np.random.default_rng(7).normal(size=(500, 3)) + 1e8
    np.testing.assert_allclose(moments(rows).covariance, np.cov(rows.T, bias=True), rtol=1e-6, atol=1e-8)


def test_the_rows_of_all_clips_are_one_gaussian() -> None:
    features = gaussian(60, 4, 9).reshape(20, 3, 4)
    other = gaussian(60, 4, 10).reshape(20, 3, 4)
    assert frechet_distance(features, other) == pytest.approx(published(features.reshape(60, 4), other.reshape(60, 4)))


def test_nan_and_other_widths_are_refused() -> None:
    rows = gaussian(10, 4, 11)
    with pytest.raises(ValueError, match="found widths 4 and 3"):
        frechet(moments(rows), moments(rows[:, :3]))
    rows[3, 2] = np.nan
    with pytest.raises(ValueError, match="found 1 NaN"):
        moments(rows)
    with pytest.raises(ValueError, match=r"found \(0, 4\)"):
        moments(rows[:0])
