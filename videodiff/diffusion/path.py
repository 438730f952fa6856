"""Paths: how a clean clip and noise mix at noise level tau. The whole project uses these letters.

    z = alpha(tau) x + sigma(tau) eps,    tau = 0: clean, tau = 1: noise        (Kingma et al. 2021, arXiv 2107.00630)

Training mixes forwards; sampling walks tau from 1 to 0. `tau` is a tensor `b t`, one level for each frame of each clip.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def per_frame(level: Tensor) -> Tensor:
    """Give a tensor `b t` the axes of a clip `b c t h w`."""
    return level[:, None, :, None, None]


class Path:
    """A pair of functions alpha, sigma of tau with their derivatives; subclasses say which."""

    def alpha(self, tau: Tensor) -> Tensor:
        """Return the share of the clean clip, 1 at tau = 0."""
        raise TypeError(f"{type(self).__name__} does not say alpha")

    def sigma(self, tau: Tensor) -> Tensor:
        """Return the share of noise, 0 at tau = 0."""
        raise TypeError(f"{type(self).__name__} does not say sigma")

    def slopes(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return d alpha / d tau and d sigma / d tau."""
        raise TypeError(f"{type(self).__name__} does not say its slopes")

    def mix(self, x: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
        """Return z: clips `b c t h w` at levels `b t`."""
        return per_frame(self.alpha(tau)) * x + per_frame(self.sigma(tau)) * eps

    def velocity(self, x: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
        """Return v = dz / d tau at fixed x and eps."""
        d_alpha, d_sigma = self.slopes(tau)
        return per_frame(d_alpha) * x + per_frame(d_sigma) * eps


class RectifiedFlow(Path):
    """Straight lines, z = (1 - tau) x + tau eps, v = eps - x (Liu et al. 2022, arXiv 2209.03003, eq. 1)."""

    def alpha(self, tau: Tensor) -> Tensor:
        return 1 - tau

    def sigma(self, tau: Tensor) -> Tensor:
        return tau

    def slopes(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(tau), torch.ones_like(tau)


class Cosine(Path):
    """Variance-preserving quarter circle, z = cos(pi tau / 2) x + sin(pi tau / 2) eps.

    The schedule of Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17) without its offset; its v is pi / 2 times that
    of Salimans and Ho 2022 (arXiv 2202.00512, appendix D).
    """

    def alpha(self, tau: Tensor) -> Tensor:
        # The sine of the complement is exactly 0 at tau = 1, the cosine is not.
        return ((1 - tau) * (math.pi / 2)).sin()

    def sigma(self, tau: Tensor) -> Tensor:
        return (tau * (math.pi / 2)).sin()

    def slopes(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return -math.pi / 2 * self.sigma(tau), math.pi / 2 * self.alpha(tau)
