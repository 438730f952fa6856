from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.sets.kernel import jedi_distance, polynomial_discrepancy


def test_the_discrepancy_of_two_points_is_what_hand_and_pencil_give() -> None:
    # Width 2: k(x, y) = (x.y / 2)^2. k(a, a) = (2 / 2)^2 = 1, k(b, b) = (8 / 2)^2 = 16, k(a, b) = (4 / 2)^2 = 4.
    a, b = np.array([[1.0, 1.0]]), np.array([[2.0, 2.0]])
    assert polynomial_discrepancy(a, b) == pytest.approx(1 + 16 - 2 * 4)


def test_it_is_the_squared_difference_of_mean_second_moments() -> None:
    # The kernel (x.y)^2 is the inner product of x x' and y y': its discrepancy compares their means.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), 1.3 * rng.normal(size=(40, 5)) + 0.2
    apart = x.T @ x / len(x) - y.T @ y / len(y)
    assert polynomial_discrepancy(x, y) == pytest.approx((apart**2).sum() / 5**2)


def test_a_set_is_at_no_distance_from_itself_and_its_figure_is_times_a_hundred() -> None:
    x = np.random.default_rng(1).normal(size=(25, 2, 8))
    assert jedi_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert jedi_distance(x, 2 * x) == pytest.approx(
        100 * polynomial_discrepancy(x.reshape(-1, 8), 2 * x.reshape(-1, 8))
    )


def test_nan_is_refused() -> None:
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match="NaN or infinity in the second set"):
        polynomial_discrepancy(x, x * np.nan)
