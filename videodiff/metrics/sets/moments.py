"""Mean and covariance of features, and the Fréchet distance of two of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """The `mean` (width,) and the `covariance` (width, width) of rows, divided by their count, as StyleGAN-V does."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Return the moments of features (rows, width)."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"features: found {rows.shape}, expected (rows, width) with at least one row")
    if not np.isfinite(rows).all():
        raise ValueError(f"features: found {np.isnan(rows).sum()} NaN in {rows.shape}, expected finite numbers")
    mean = rows.mean(axis=0)
    return Moments(mean, (rows - mean).T @ (rows - mean) / len(rows))


def frechet(one: Moments, other: Moments) -> float:
    """Return |mean - mean|² + tr(S + S' - 2 (S S')^½), the squared Fréchet distance of two Gaussians.

    S S' has the eigenvalues of R S' R with R² = S, which is symmetric: no root of a general matrix is needed.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features: found widths {len(one.mean)} and {len(other.mean)}, expected one")
    values, vectors = np.linalg.eigh(one.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    joint = np.linalg.eigvalsh(root @ other.covariance @ root)
    shared = np.sqrt(np.maximum(joint, 0.0)).sum()
    apart = np.square(one.mean - other.mean).sum()
    return max(float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared), 0.0)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Fréchet distance of features (clips, rows, width); all rows of a set are one Gaussian."""
    return frechet(moments(flat(one)), moments(flat(other)))


def flat(features: np.ndarray) -> np.ndarray:
    """Return features (clips, rows, width) as one row after the other."""
    return features.reshape(-1, features.shape[-1])
