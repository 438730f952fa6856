"""Progressive distillation: one step of the network learns what two steps of a teacher do.

Salimans and Ho 2022 (arXiv 2202.00512, algorithm 2), with a level for each frame. Each training halves the number of
steps and is the teacher of the next, which also starts from its weights. The teacher is a second network in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from videodiff.device import send
from videodiff.diffusion.guidance import denoise_function
from videodiff.diffusion.objective import Condition, Denoiser, Objective, drop, mean_over_noisy
from videodiff.diffusion.path import Path, per_frame
from videodiff.diffusion.prediction import convert, divide
from videodiff.diffusion.sampler import hold


@dataclass(eq=False)
class ProgressiveDistillation(Objective):
    """The squared distance of one step of the student from two steps of the teacher, one number a clip.

    `steps` is the student's number of steps; levels are drawn on its grid. `teacher` is a run or a checkpoint; the
    builder of the objective loads its weights into `network`.
    """

    steps: int = 4
    teacher: str | None = None
    network: nn.Module | None = field(default=None, init=False, repr=False)
    # Two steps of the teacher.
    forwards = 2.0
    taught = True

    def __call__(
        self, denoiser: Denoiser, x: Tensor, condition: Condition, null: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the loss of each clip (b,); the arguments are those of `Objective`."""
        if self.network is None:
            raise ValueError("objective.teacher: found none, expected a run or a checkpoint to learn from")
        draws = [self.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]
        dropped, eps = send(torch.stack([d[2] for d in draws]), x.device), torch.stack([d[1] for d in draws])
        # The start, the middle and the end of a step of the grid.
        taus = [
            send(torch.stack([self.on_grid(clip, seed, back) for clip, seed in zip(x, seeds, strict=True)]), x.device)
            for back in (0.0, 0.5, 1.0)
        ]
        condition, z = drop(condition, null, dropped), self.path.mix(x, eps, taus[0])
        made = self.for_loss(denoiser(z, taus[0], **condition), z, taus[0])
        answer = self.answer(z, taus, condition)
        output = getattr(convert(answer, z, taus[0], self.path, "x"), self.prediction)
        return mean_over_noisy(made - self.for_loss(output, z, taus[0]), taus[0])

    def on_grid(self, clip: Tensor, seed: int, back: float) -> Tensor:
        """Return the drawn levels (t,) of a clip, rounded to the grid and `back` steps nearer to clean, on the host."""
        _, t, h, w = clip.shape

        def move(tau: Tensor) -> Tensor:
            return (((tau * self.steps).ceil() - back) / self.steps).clamp(0, 1)

        return self.levels(t, t * h * w, Generator().manual_seed(seed), move)

    @torch.no_grad()
    def answer(self, z: Tensor, taus: Sequence[Tensor], condition: Condition) -> Tensor:
        """Return the predicted clip with which one step from z ends where two steps of the teacher end."""
        denoise = denoise_function(self.network.to(z.device), dict(condition), self.path, self.prediction)
        start, middle, end = taus
        first = denoise(z, start)
        half = step(self.path, z, first, start, middle)
        there = step(self.path, half, denoise(half, middle), middle, end)
        shrink, scale = factors(self.path, start, end)
        # A frame whose level does not change takes the teacher's own prediction.
        return torch.where(scale.abs() > 1e-6, divide(there - shrink * z, scale, 1e-6), first)


def factors(path: Path, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b of the step a z + b x between two levels (Song et al. 2020, arXiv 2010.02502, eq. 12)."""
    shrink = divide(per_frame(path.sigma(end)), per_frame(path.sigma(start)), 0.0)
    return shrink, per_frame(path.alpha(end)) - shrink * per_frame(path.alpha(start))


def step(path: Path, z: Tensor, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Step from one level to another, given the clean clip; a frame whose level does not change stays."""
    shrink, scale = factors(path, start, end)
    return hold(z, shrink * z + scale * x, start, end)
