"""The maximum mean discrepancy of features with a polynomial kernel, as JEDi takes it (arXiv 2410.05203)."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.sets.moments import flat

DEGREE = 2
# JEDi's figures are a hundred times the discrepancy.
SCALE = 100.0


def jedi_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return 100 times the squared discrepancy of features (clips, rows, width), kernel (x·y / width)²."""
    return SCALE * polynomial_discrepancy(flat(one), flat(other))


def polynomial_discrepancy(one: np.ndarray, other: np.ndarray) -> float:
    """Return mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over all pairs, a row with itself among them.

    As it counts the pairs (x, x), it is never below 0, and about 1 / rows for two sets of one distribution.
    """
    for name, rows in (("first", one), ("second", other)):
        if not np.isfinite(rows).all():
            raise ValueError(f"features: found NaN or infinity in the {name} set, expected finite numbers")
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    width = x.shape[1]
    return float(
        ((x @ x.T / width) ** DEGREE).mean()
        + ((y @ y.T / width) ** DEGREE).mean()
        - 2 * ((x @ y.T / width) ** DEGREE).mean()
    )
