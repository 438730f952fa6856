"""Guidance: functions that wrap a denoise function and give a denoise function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from videodiff.diffusion.path import Path, per_frame
from videodiff.diffusion.prediction import convert

Denoise = Callable[..., Tensor]


def denoise_function(
    denoiser: Callable[..., Tensor], condition: dict[str, Tensor], path: Path, prediction: str
) -> Denoise:
    """Bind a network and its condition into `denoise(z, tau) -> x`; `prediction` is what the network gives.

    A flow map is also told the level that each frame is to go to: `denoise(z, tau, rho)`.
    """

    def denoise(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        told = dict(zip(("rho",), rho, strict=False))
        return convert(denoiser(z, tau, **condition, **told), z, tau, path, prediction, floor=1e-3).x

    return denoise


def classifier_free(
    conditional: Denoise, unconditional: Denoise, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoise:
    """Push away from the prediction without a caption (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    `scale` 1 is no guidance. Only frames whose level lies in `interval` are pushed (Kynkaanniemi et al. 2024,
    arXiv 2404.07724); where none does, the second network call is saved.
    """
    if scale == 1.0:
        return conditional

    def denoise(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        x = conditional(z, tau, *rho)
        guided = (tau >= interval[0]) & (tau <= interval[1]) & (tau > 0)
        if not bool(guided.any()):
            return x
        x_null = unconditional(z, tau, *rho)
        return torch.where(per_frame(guided), x_null + scale * (x - x_null), x)

    return denoise
