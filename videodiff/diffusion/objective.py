"""The objective: the only place where training noise is drawn and the loss is taken.

    tau, eps ~ seed;   z = mix(x, eps, tau);   loss = mean over frames with tau > 0 of || prediction - target ||^2

Every draw comes from a generator keyed by (seed, step, position in the global batch), so a clip meets the same noise
whatever the number of processes. Noise levels and dropped captions are drawn on the host and are the same on every
device; the noise itself is drawn where the clip is. Nothing waits for the device. Usable without Lightning:

    objective = Objective(path=RectifiedFlow(), levels=NoiseLevels())
    loss = objective(denoiser, x, condition, null, seeds=clip_seeds(0, step, range(len(x))))
    loss.mean().backward()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from videodiff.device import send
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.path import Path
from videodiff.diffusion.prediction import FLOOR, KINDS, Prediction, convert

Denoiser = Callable[..., Tensor]
Condition = Mapping[str, Tensor]

# The weights that only a call meets that is told where its step ends.
STEPS = "denoiser.*step.*"


def clip_seeds(seed: int, step: int, positions: Iterable[int]) -> list[int]:
    """Return one 63-bit seed for each position of a global batch."""
    return [int(np.random.SeedSequence([seed, step, p]).generate_state(1, np.uint64)[0] >> 1) for p in positions]


@dataclass(eq=False)
class Objective:
    """Denoising loss of one batch, one number a clip; `takes_steps` tells whether the weights for steps learn.

    `prediction` is the type of the network's output, `loss` the type in which the error is measured (each x, v or eps);
    `floor` bounds the divisor of a conversion; a caption is dropped with probability `caption_dropout`.
    """

    takes_steps = False
    # How many forward passes without a gradient a clip takes in a step on average, beside the pass that learns. An
    # objective with such passes trains the steps of a sampler, which then needs the shift of `levels`.
    forwards = 0.0
    # How many of these take a step of a flow map.
    own_steps = 0.0
    # Whether a second network teaches, which does not change.
    taught = False

    path: Path
    levels: NoiseLevels
    prediction: str = "v"
    loss: str = "v"
    floor: float = FLOOR
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (("prediction", self.prediction), ("loss", self.loss)):
            if kind not in KINDS:
                raise ValueError(f"objective.{name}: found {kind!r}, expected one of {', '.join(KINDS)}")
        if self.forwards and self.prediction == "eps":
            raise ValueError(
                "objective.prediction: found 'eps' for few steps, expected x or v: the first step begins at pure "
                "noise, where eps is z and says nothing of the clip"
            )

    def learns(self, name: str) -> bool:
        """Tell whether a weight learns: those for steps of a flow map if the objective takes steps, else all others."""
        return fnmatchcase(name, STEPS) == self.takes_steps

    def __call__(
        self, denoiser: Denoiser, x: Tensor, condition: Condition, null: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the loss of each clip (b,).

        x: clean clips `b c t h w`; condition: keyword arguments of the denoiser, each with a leading axis b; null: what
        replaces some of them where the caption is dropped; seeds: one a clip.
        """
        draws = [self.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]
        tau, dropped = (send(torch.stack([d[i] for d in draws]), x.device) for i in (0, 2))
        eps = torch.stack([d[1] for d in draws])
        return self.error(denoiser, x, eps, tau, drop(condition, null, dropped))

    def draw(self, clip: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the noise levels (t,), the noise `c t h w` and whether the caption is dropped (), from one seed.

        The noise is on the clip's device, the other two are on the host.
        """
        generator = torch.Generator().manual_seed(seed)
        _, t, h, w = clip.shape
        tau = self.levels(t, t * h * w, generator)
        dropped = torch.rand((), generator=generator, dtype=torch.float32) < self.caption_dropout
        if clip.device.type != "cpu":
            # Seeding does not wait for the device: the seed travels with the kernel call.
            generator = torch.Generator(clip.device).manual_seed(seed)
        return tau, torch.randn(clip.shape, generator=generator, device=clip.device, dtype=torch.float32), dropped

    def error(self, denoiser: Denoiser, x: Tensor, eps: Tensor, tau: Tensor, condition: Condition) -> Tensor:
        """Return the mean squared error of each clip over its noisy frames (b,), at given noise."""
        z = self.path.mix(x, eps, tau)
        truth = Prediction(x, eps, self.path.velocity(x, eps, tau))
        # The truth is converted with the same floor, so that an exact output has no error at any level.
        outputs = denoiser(z, tau, **condition), getattr(truth, self.prediction)
        made, wanted = (self.for_loss(output, z, tau) for output in outputs)
        return mean_over_noisy(made - wanted, tau)

    def for_loss(self, output: Tensor, z: Tensor, tau: Tensor) -> Tensor:
        """Return an output of the network `b c t h w` as what the loss compares."""
        return getattr(convert(output, z, tau, self.path, self.prediction, self.floor), self.loss)


def mean_over_noisy(difference: Tensor, tau: Tensor) -> Tensor:
    """Return the mean square (b,) of a difference `b c t h w` over the frames of each clip with tau > 0."""
    return mean_where(difference.square().mean(dim=(1, 3, 4)), tau > 0)


def mean_where(error: Tensor, counted: Tensor) -> Tensor:
    """Return the mean (b,) of the errors of frames (b, t) over those of each clip that are counted (b, t)."""
    weight = counted.to(error.dtype)
    return (error * weight).sum(1) / weight.sum(1).clamp_min(1)


def drop(condition: Condition, null: Condition, dropped: Tensor) -> dict[str, Tensor]:
    """Replace the entries that `null` names by those of `null`, for the clips where `dropped` (b,) is true."""
    kept = dict(condition)
    for key, value in null.items():
        where = dropped.view(-1, *[1] * (value.ndim - 1))
        kept[key] = torch.where(where, value, kept[key])
    return kept
