"""Noise levels of a training clip: one number per frame, and which frames are given.

A policy turns one drawn level into the levels of all frames. Frames at 0 are given, so the policy alone decides
whether a step trains text-to-video, image-to-video, continuation, interpolation or diffusion forcing. All draws are
float32: a training in half precision changes the type that torch makes tensors of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

Draw = Callable[[int, Generator], Tensor]


def uniform(n: int, generator: Generator) -> Tensor:
    """Draw `n` levels evenly from [0, 1)."""
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float32)


def logit_normal(n: int, generator: Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw `n` levels whose logit is normal (Esser et al. 2024, arXiv 2403.03206, eq. 19)."""
    normal = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float32)
    return torch.sigmoid(mean + std * normal)


def shift_levels(tau: Tensor, shift: float) -> Tensor:
    """Move levels toward noise by `shift` > 1 (Esser et al. 2024, eq. 23); 0 and 1 stay where they are."""
    return shift * tau / (shift * tau + (1 - tau))


def token_shift(tokens: int, base_tokens: int | None, base_shift: float) -> float:
    """Return a shift that grows with the root of the number of tokens: more tokens need more noise to be destroyed.

    Tokens are `t h w` of a clip before the network joins them to patches. With `base_tokens` None the shift is the same
    for clips of any size.
    """
    return base_shift if base_tokens is None else base_shift * math.sqrt(tokens / base_tokens)


def shared(t: int, draw: Callable[[int], Tensor], generator: Generator) -> Tensor:
    """Give all frames the same level: text-to-video."""
    return draw(1).expand(t).clone()


def prefix(t: int, draw: Callable[[int], Tensor], generator: Generator, known: int | None = None) -> Tensor:
    """Give the first `known` frames, or a random number of them from 1 to t - 1: image-to-video, continuation."""
    tau = shared(t, draw, generator)
    if known is None:
        known = int(torch.randint(1, max(t, 2), (), generator=generator, device=generator.device))
    tau[: min(known, t - 1)] = 0
    return tau


def ends(t: int, draw: Callable[[int], Tensor], generator: Generator) -> Tensor:
    """Give the first and the last frame: interpolation."""
    tau = shared(t, draw, generator)
    if t > 2:
        tau[0], tau[-1] = 0, 0
    return tau


def independent(t: int, draw: Callable[[int], Tensor], generator: Generator) -> Tensor:
    """Draw a level for each frame: diffusion forcing (Chen et al. 2024, arXiv 2407.01392)."""
    return draw(t)


def lead(t: int, draw: Callable[[int], Tensor], generator: Generator, first: int = 1) -> Tensor:
    """Draw a level for the first frames and leave the others pure noise: the start of sampling with `lead`."""
    tau = torch.ones(t, device=generator.device, dtype=torch.float32)
    tau[:first] = draw(1)
    return tau


POLICIES = {"shared": shared, "prefix": prefix, "ends": ends, "independent": independent, "lead": lead}
# One network for text-to-video, image-to-video, continuation, interpolation and rolling generation.
USUAL = {"shared": 0.7, "prefix": 0.2, "ends": 0.05, "independent": 0.05}
COUNTED = {"prefix": "known", "lead": "first"}
# Frames of a clip of t frames that a policy gives levels of their own; where it draws how many, the fewest.
APART: dict[str, Callable[..., Sequence[int]]] = {
    "shared": lambda t: (),
    "prefix": lambda t, known=1: range(min(known, t - 1)),
    "ends": lambda t: (0, t - 1) if t > 2 else (),
    "independent": lambda t: range(1),
    "lead": lambda t, first=1: range(min(first, t)),
}


class NoiseLevels:
    """Draw the levels of one clip: a policy by weight, a distribution, a shift.

    `policies` maps shared, prefix, ends, independent, lead, prefix_<k> (exactly k frames given) or lead_<k> to a
    weight, None: `USUAL`; `pure` is the share of draws put at exactly 1, where only the given frames and the caption
    carry information.
    """

    def __init__(
        self,
        policies: Mapping[str, float] | None = None,
        distribution: str = "logit_normal",
        mean: float = 0.0,
        std: float = 1.0,
        base_shift: float = 1.0,
        base_tokens: int | None = 1024,
        pure: float = 0.0,
    ) -> None:
        names = dict(USUAL if policies is None else policies)
        self.policies, self.names = [policy(name) for name in names], list(names)
        self.weights = torch.tensor([float(weight) for weight in names.values()], dtype=torch.float64).float()
        if not all(weight >= 0 for weight in self.weights) or not 0 < self.weights.sum() < math.inf:
            raise ValueError(
                f"levels.policies: found the weights {names}, expected none negative, one positive, and a finite sum"
            )
        if distribution not in ("uniform", "logit_normal"):
            raise ValueError(f"levels.distribution: found {distribution!r}, expected uniform or logit_normal")
        self.base: Draw = uniform if distribution == "uniform" else partial(logit_normal, mean=mean, std=std)
        self.base_shift, self.base_tokens, self.pure = base_shift, base_tokens, pure

    def shift(self, tokens: int) -> float:
        """Return the shift of the levels of a clip of so many tokens."""
        return token_shift(tokens, self.base_tokens, self.base_shift)

    def __call__(
        self, t: int, tokens: int, generator: Generator, move: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the levels (t,) of a clip of `t` frames and `tokens` tokens.

        `move` changes each drawn level before the shift. A second call with an equal generator and another `move` gives
        the second levels of a step: frames that a policy gives or lets wait do not move.
        """
        choice = int(torch.multinomial(self.weights.to(generator.device), 1, generator=generator))
        shift = self.shift(tokens)

        def draw(n: int) -> Tensor:
            tau = self.base(n, generator)
            pure = uniform(n, generator) < self.pure
            tau = torch.where(pure, 1.0, tau)
            return shift_levels(tau if move is None else move(tau), shift)

        return self.policies[choice](t, draw, generator)

    def apart(self, t: int) -> dict[str, Sequence[int]]:
        """Return for each policy that is drawn the frames, of `t`, with levels of their own."""
        drawn = [name for name, weight in zip(self.names, self.weights.tolist(), strict=True) if weight]
        return {name: policy(name, APART)(t) for name in drawn}


def policy(name: str, of: Mapping[str, Callable[..., Any]] = POLICIES) -> Callable[..., Any]:
    """Return what belongs to the policy of this name; prefix_3 and lead_1 fix the number of frames.

    prefix_0 is shared. lead_0 would leave every frame pure noise, with no level drawn: it is none.
    """
    kind, _, count = name.partition("_")
    if kind in COUNTED and count.isdecimal() and (kind, int(count)) != ("lead", 0):
        return partial(of[kind], **{COUNTED[kind]: int(count)})
    if name not in of:
        raise ValueError(
            f"levels.policies: found {name!r}, expected one of {', '.join(POLICIES)}, prefix_<k>, or lead_<k> from "
            "lead_1 on"
        )
    return of[name]
