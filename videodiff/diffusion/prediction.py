"""Prediction types: what the network's output means, with exact conversions.

Given z and tau, each of x, eps and v fixes the others: z = alpha x + sigma eps and v = alpha' x + sigma' eps are two
equations whose determinant alpha sigma' - sigma alpha' is 1 on the straight path and pi / 2 on the cosine path.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videodiff.diffusion.path import Path, per_frame

KINDS = ("x", "eps", "v")
# The usual smallest divisor (JiT, arXiv 2511.13720): what a network errs by grows by 20 times at most.
FLOOR = 0.05


class Prediction(NamedTuple):
    """The same prediction in its three forms, each `b c t h w`."""

    x: Tensor
    eps: Tensor
    v: Tensor


def convert(output: Tensor, z: Tensor, tau: Tensor, path: Path, kind: str, floor: float = 0.0) -> Prediction:
    """Return the three forms of a network output of this `kind`.

    `floor` is the smallest divisor: sigma if x is given, alpha if eps is given. A training loss on v with predicted x
    needs one, and so does a sampler with predicted eps, which begins at pure noise. A divisor of 0, at a clean frame,
    gives eps = 0.
    """
    alpha, sigma = per_frame(path.alpha(tau)), per_frame(path.sigma(tau))
    d_alpha, d_sigma = (per_frame(slope) for slope in path.slopes(tau))
    if kind == "v":
        determinant = alpha * d_sigma - sigma * d_alpha
        x = (d_sigma * z - sigma * output) / determinant
        eps = (alpha * output - d_alpha * z) / determinant
        return Prediction(x, eps, output)
    if kind == "x":
        x, eps = output, divide(z - alpha * output, sigma, floor)
    elif kind == "eps":
        x, eps = divide(z - sigma * output, alpha, floor), output
    else:
        raise ValueError(f"prediction: found {kind!r}, expected one of {', '.join(KINDS)}")
    return Prediction(x, eps, d_alpha * x + d_sigma * eps)


def divide(numerator: Tensor, divisor: Tensor, floor: float) -> Tensor:
    """Divide by max(divisor, floor); 0 where that is 0."""
    safe = divisor.clamp_min(floor)
    return torch.where(safe > 0, numerator / torch.where(safe > 0, safe, 1.0), 0.0)
