"""Guidance: functions that wrap a denoise function and return a denoise function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from videodiff.diffusion.path import Path, per_frame
from videodiff.diffusion.prediction import FLOOR, convert

Denoise = Callable[..., Tensor]


def denoise_function(
    denoiser: Callable[..., Tensor], condition: dict[str, Tensor], path: Path, prediction: str
) -> Denoise:
    """Bind a network and its condition into `denoise(z, tau) -> x`; `prediction` names the network's output.

    A flow map also takes the level at which the step ends: `denoise(z, tau, rho)`.
    """

    def denoise(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        told = {"rho": rho[0]} if rho else {}
        return convert(denoiser(z, tau, **condition, **told), z, tau, path, prediction, FLOOR).x

    return denoise


def classifier_free(
    conditional: Denoise,
    unconditional: Denoise,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    clips: Tensor | None = None,
) -> Denoise:
    """Push away from the prediction without a caption (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    `scale` 1 is no guidance. Only frames whose level lies in `interval` are pushed (Kynkaanniemi et al. 2024,
    arXiv 2404.07724); if there are none, the second network call is saved. `rescale` from 0 to 1 moves the spread of
    each frame back to its spread without guidance (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16). clips (b,): which
    clips are pushed; None: all.
    """
    if scale == 1.0:
        return conditional

    def denoise(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        x = conditional(z, tau, *rho)
        guided = (tau >= interval[0]) & (tau <= interval[1]) & (tau > 0)
        guided = guided if clips is None else guided & clips[:, None]
        if not bool(guided.any()):
            return x
        x_null = unconditional(z, tau, *rho)
        pushed = x_null + scale * (x - x_null)
        if rescale:
            spread, now = (one.std(dim=(1, 3, 4), keepdim=True) for one in (x, pushed))
            pushed = pushed * (1 + rescale * (spread / now.clamp_min(1e-6) - 1))
        return torch.where(per_frame(guided), pushed, x)

    return denoise


def with_history(
    denoise: Denoise,
    path: Path,
    history: Tensor,
    noise: Tensor,
    scale: float | Tensor,
    level: float = 1.0,
    blind: Denoise | None = None,
) -> Denoise:
    """Push away from the prediction without the history (Song et al. 2025, arXiv 2502.06764, eq. 5 and 6).

    history (b, t): the known frames. `scale`: one number, where 1 is no guidance, or one for each clip (b,). The
    prediction without the history sees these frames at noise level `level`: pure noise at 1; below 1 their coarse part
    is left (fractional history guidance). `blind` makes this prediction, None: `denoise`. It may also leave out the
    captions of some clips, which then guide too.
    """
    if isinstance(scale, Tensor):
        scale = per_frame(scale[:, None])
    elif scale == 1.0:
        return denoise

    def guided(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        x = denoise(z, tau, *rho)
        without_tau = torch.where(history, level, tau)
        without = torch.where(per_frame(history), path.mix(z, noise, without_tau), z)
        x_blind = (blind or denoise)(without, without_tau, *(torch.where(history, level, one) for one in rho))
        return torch.where(per_frame(~history), x_blind + scale * (x - x_blind), x)

    return guided


def holding(denoise: Denoise, clip: Tensor, kept: Tensor) -> Denoise:
    """Predict the pixels of `clip` where `kept` (b, 1, t, h, w) is true, so that samplers keep them on their path."""

    def held(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        return torch.where(kept, clip, denoise(z, tau, *rho))

    return held


def reconstructing(denoise: Denoise, path: Path, clip: Tensor, kept: Tensor, weight: float) -> Denoise:
    """Push toward clips whose kept pixels are predicted correctly (Ho et al. 2022, VDM, arXiv 2204.03458, eq. 7).

    The gradient of the squared error in the kept pixels goes through the network: a step costs about three times as
    much.
    """
    if weight == 0.0 or not bool(kept.any()):
        return denoise

    def guided(z: Tensor, tau: Tensor, *rho: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = denoise(z, tau, *rho)
            (slope,) = torch.autograd.grad(((x - clip).square() * kept).sum(), z)
        return (x - weight / 2 * per_frame(path.alpha(tau)) * slope).detach()

    return guided
