"""Samplers: the only place where time runs backwards, from tau = 1 to tau = 0.

Each is a pure function of (denoise, z, taus, path): `denoise(z, tau)` returns the predicted clean clip, `taus` is a
tensor `steps + 1, b, t` of decreasing noise levels. A frame whose level does not change keeps its value. A known frame
has level 0 throughout, so image-to-video, continuation and interpolation need no mode of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from videodiff.diffusion.levels import shift_levels
from videodiff.diffusion.path import Path, per_frame
from videodiff.diffusion.prediction import convert, divide

Denoise = Callable[..., Tensor]
Sampler = Callable[[Denoise, Tensor, Tensor, Path], Tensor]


def schedule(
    steps: int,
    known: Tensor,
    shift: float = 1.0,
    lead: int = 0,
    begin: Tensor | None = None,
    held: Tensor | None = None,
) -> Tensor:
    """Return levels `n + 1, b, t` down to 0, evenly spaced before `shift`; `known` (b, t) frames stay at one level.

    begin (b, t): the first levels, 1 by default; held (b,): the level of known frames, 0 by default. With `lead` the
    first `lead` frames are sampled alone while the others wait at 1; then the others are sampled, given the first. That
    takes twice the steps. A clip that knows a frame, or begins below 1, does not lead: it waits for clips that do.
    """
    begin = torch.ones(known.shape, device=known.device, dtype=torch.float32) if begin is None else begin
    held = torch.zeros(len(known), device=known.device, dtype=torch.float32) if held is None else held
    line = torch.linspace(1, 0, steps + 1, device=known.device, dtype=torch.float32)[:, None, None]
    taus = torch.where(known, held[:, None], shift_levels(line * shift_levels(begin, 1 / shift), shift))
    leads = leading(known, begin, lead)
    if not leads.any():
        return taus
    return torch.cat([torch.where(leads, taus[:-1], taus[:1]), torch.where(leads, 0.0, taus)])


def leading(known: Tensor, begin: Tensor, lead: int) -> Tensor:
    """Return the frames (b, t) that lead: the first `lead` of each clip that knows none and begins at 1; not all."""
    whole = ~known.any(1, keepdim=True) & (begin == 1).all(1, keepdim=True)
    return (torch.arange(known.shape[1], device=known.device) < lead) & whole & (lead < known.shape[1])


def generate(sampler: Sampler, denoise: Denoise, path: Path, noise: Tensor, clip: Tensor, taus: Tensor) -> Tensor:
    """Sample clips `b c t h w`: a frame starts from `clip` at level 0, from `noise` at level 1, else from their mix."""
    # A mix at level 1 is the noise too, unless the clip, which may be anything there, is not finite.
    begun = torch.where(per_frame(taus[0]) < 1, path.mix(clip, noise, taus[0]), noise)
    return sampler(denoise, begun, taus, path)


def hold(z: Tensor, stepped: Tensor, tau: Tensor, tau_next: Tensor) -> Tensor:
    """Take the step only in frames whose level changes."""
    return torch.where(per_frame(tau) != per_frame(tau_next), stepped, z)


def slope(denoise: Denoise, z: Tensor, tau: Tensor, path: Path) -> Tensor:
    """Return dz / d tau along the probability-flow path."""
    return convert(denoise(z, tau), z, tau, path, "x").v


def euler(denoise: Denoise, z: Tensor, taus: Tensor, path: Path) -> Tensor:
    """Follow the slope at the start of each step (first order)."""
    for tau, tau_next in pairwise(taus):
        stepped = z + per_frame(tau_next - tau) * slope(denoise, z, tau, path)
        z = hold(z, stepped, tau, tau_next)
    return z


def flow_map(denoise: Denoise, z: Tensor, taus: Tensor, path: Path) -> Tensor:
    """Follow the mean slope of each step, predicted by a network with two levels (`flow_map.py`): exact at any step."""
    for tau, tau_next in pairwise(taus):
        mean = convert(denoise(z, tau, tau_next), z, tau, path, "x").v
        z = hold(z, z + per_frame(tau_next - tau) * mean, tau, tau_next)
    return z


def heun(denoise: Denoise, z: Tensor, taus: Tensor, path: Path) -> Tensor:
    """Follow the mean of the slopes at both ends (second order; Karras et al. 2022, arXiv 2206.00364, algorithm 1)."""
    for tau, tau_next in pairwise(taus):
        step, mean = per_frame(tau_next - tau), slope(denoise, z, tau, path)
        # At tau = 0 the slope of an x prediction is 0 / 0: the last step of a frame is Euler's.
        inside = per_frame(tau_next > 0)
        if bool(inside.any()):
            end = hold(z, z + step * mean, tau, tau_next)
            mean = torch.where(inside, (mean + slope(denoise, end, tau_next, path)) / 2, mean)
        z = hold(z, z + step * mean, tau, tau_next)
    return z


def ddim(denoise: Denoise, z: Tensor, taus: Tensor, path: Path) -> Tensor:
    """Mix the predicted clip and the predicted noise at the next level (Song et al. 2020, arXiv 2010.02502, eq. 12)."""
    for tau, tau_next in pairwise(taus):
        made = convert(denoise(z, tau), z, tau, path, "x")
        z = hold(z, path.mix(made.x, made.eps, tau_next), tau, tau_next)
    return z


def dpm_solver_2m(denoise: Denoise, z: Tensor, taus: Tensor, path: Path) -> Tensor:
    """DPM-Solver++(2M): second order from the previous prediction (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    before, x_before = None, None
    for tau, tau_next in pairwise(taus):
        x = denoise(z, tau)
        guess = x
        if before is not None:
            # The ratio is 0 after a step from pure noise, and infinite in a step to a clean clip or after a wait. All
            # of these steps are first order.
            h, h_before = log_snr(path, tau_next) - log_snr(path, tau), log_snr(path, tau) - log_snr(path, before)
            ratio = per_frame(h / h_before)
            guess = torch.where(ratio.isfinite(), x + ratio / 2 * (x - x_before), x)
        alpha, sigma = per_frame(path.alpha(tau)), per_frame(path.sigma(tau))
        alpha_next, sigma_next = per_frame(path.alpha(tau_next)), per_frame(path.sigma(tau_next))
        shrink = divide(sigma_next, sigma, 0.0)
        z = hold(z, shrink * z + (alpha_next - shrink * alpha) * guess, tau, tau_next)
        before, x_before = tau, x
    return z


def log_snr(path: Path, tau: Tensor) -> Tensor:
    """Return log(alpha / sigma), infinite at the ends."""
    return path.alpha(tau).log() - path.sigma(tau).log()
