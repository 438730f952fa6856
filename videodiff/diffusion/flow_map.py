"""A flow map: one network that goes from any noise level to any lower one in one step, frame by frame.

    z_rho = z - (tau - rho) u(z, tau, rho)

u is the mean velocity between the levels (Geng et al. 2025, arXiv 2505.13447); at rho = tau it is the velocity v
itself, so a trained denoiser is a valid start. If the start of a step moves along its own path, the end stays:

    d/d tau [(tau - rho) u(z, tau, rho)] = v(z, tau)

The loss is a difference of this identity between tau and a level sigma, which lies between tau and rho. Each frame has
its own three levels. On the way from tau to sigma the target follows v by the midpoint rule, in `pieces` pieces:

    (tau - rho) u(z, tau, rho)  =  (way from z to z_sigma)  +  (sigma - rho) u(z_sigma, sigma, rho)

Only the left side is trained. It learns from lower levels only, so errors shrink from step to step; the same identity
solved for u at the middle, v minus a derivative of u, lets them grow (docs/few_steps.md). With `difference` 1 the way
leads to rho itself: the network learns from its v alone, and nothing has to spread from short steps to long ones. There
is no critic, no second network, no forward mode and no division by a small number, so bfloat16 is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor

from videodiff.device import send
from videodiff.diffusion.objective import Condition, Denoiser, Objective, drop, mean_over_noisy
from videodiff.diffusion.path import per_frame
from videodiff.diffusion.prediction import convert


@dataclass(eq=False)
class FlowMap(Objective):
    """The squared difference of both sides of the identity, one number a clip; the network must take two levels.

    `still` is the share of clips that learn v from the data (rho = tau), `clean` the share of clips whose step ends at
    0; the others end at a level drawn uniformly between, before the shift. `difference` is the distance from tau to
    sigma as a share of the step, before the shift; `pieces` is the number of pieces of that way, each of two passes.
    """

    two_levels = True

    still: float = 0.5
    clean: float = 0.25
    difference: float = 0.25
    pieces: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.still <= 1 - self.clean:
            raise ValueError(
                f"objective.still: found {self.still} beside clean = {self.clean}, expected above 0 (there the network "
                "learns its velocity) and at most 1 in all"
            )

    @property
    def forwards(self) -> float:
        """The passes without a gradient of a clip: where it takes a step, two a piece and one for the rest."""
        return (2 * self.pieces + (self.difference < 1)) * (1 - self.still)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, condition: Condition, null: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the loss of each clip (b,); the arguments are those of `Objective`."""
        draws = [self.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]
        tau, dropped = (torch.stack([d[i] for d in draws]) for i in (0, 2))
        eps = torch.stack([d[1] for d in draws])
        below = [self.difference * (i + 1) / self.pieces for i in range(self.pieces)]
        levels = [
            torch.stack([self.lower(clip, seed, part) for clip, seed in zip(x, seeds, strict=True)])
            for part in (*below, 1.0)
        ]
        condition = drop(condition, null, send(dropped, x.device))
        return self.map_error(denoiser, x, eps, (tau, *levels), condition)

    def lower(self, clip: Tensor, seed: int, part: float) -> Tensor:
        """Return the levels (t,), on the host, that a clip reaches after `part` of its step."""
        _, t, h, w = clip.shape
        own = Generator().manual_seed(second_seed(seed))
        kind = float(torch.rand((), generator=own))

        def move(tau: Tensor) -> Tensor:
            left = torch.rand(tau.shape, generator=own)
            if kind < self.still + self.clean:
                left = torch.full_like(tau, float(kind < self.still))
            return tau * (1 - part * (1 - left))

        return self.levels(t, t * h * w, Generator().manual_seed(seed), move)

    def map_error(
        self, denoiser: Denoiser, x: Tensor, eps: Tensor, levels: Sequence[Tensor], condition: Condition
    ) -> Tensor:
        """Return the mean squared error of each clip (b,) at given noise.

        It is the mean over the noisy frames of a clip that takes no step, and over the moving frames of one that does.
        levels: tau, the ends of the pieces down to sigma, and rho, each `b t`, on the host, as they decide there which
        clips take a step.
        """
        moving = torch.nonzero((levels[0] > levels[-1]).any(1))[:, 0]
        # A rank without such a clip makes the same passes, because under ZeRO 3 all ranks gather weights together.
        moving = send(moving if len(moving) else torch.zeros(1, dtype=torch.long), x.device)
        levels = [send(level, x.device) for level in levels]
        tau, rho = levels[0], levels[-1]
        z, v = self.path.mix(x, eps, tau), self.path.velocity(x, eps, tau)
        some = {name: value[moving] for name, value in condition.items()}
        mean = self.mean_velocity(denoiser, z[moving], [level[moving] for level in levels], some)
        # A clip that takes no step learns from the data.
        still = (tau <= rho).all(1, keepdim=True)
        v = v.index_copy(0, moving, torch.where(per_frame(still[moving]), v[moving], mean))
        made = convert(denoiser(z, tau, rho=rho, **condition), z, tau, self.path, self.prediction, self.floor)
        # The target goes through the same floor, so that the exact output has no error at any level.
        output = getattr(convert(v, z, tau, self.path, "v"), self.prediction)
        wanted = convert(output, z, tau, self.path, self.prediction, self.floor)
        # A frame that waits while others move learns nothing new. If it counted, it would only dilute their errors.
        counted = torch.where(still | (tau > rho), tau, 0.0)
        return mean_over_noisy(getattr(made, self.loss) - getattr(wanted, self.loss), counted)

    @torch.no_grad()
    def mean_velocity(self, denoiser: Denoiser, z: Tensor, levels: Sequence[Tensor], condition: Condition) -> Tensor:
        """Return the mean velocity from the first of these levels to the last, `b c t h w`, from the lower levels."""
        *down, rho = levels
        tau, sigma = down[0], down[-1]

        def slope(z: Tensor, tau: Tensor, rho: Tensor) -> Tensor:
            output = denoiser(z, tau, rho=rho, **condition)
            return convert(output, z, tau, self.path, self.prediction, self.floor).v

        there, way = z, torch.zeros_like(z)
        for above, below in pairwise(down):
            middle = (above + below) / 2
            half = there + per_frame(middle - above) * slope(there, above, above)
            v = slope(half, middle, middle)
            there, way = there + per_frame(below - above) * v, way + per_frame(above - below) * v
        if self.difference < 1:
            way = way + per_frame(sigma - rho) * slope(there, sigma, rho)
        # A frame that stands still has v alone.
        step = per_frame(tau - rho)
        return torch.where(step > 0, way / torch.where(step > 0, step, 1.0), v)


def second_seed(seed: int) -> int:
    """Return a second seed, so that further draws leave those of `Objective.draw` unchanged."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0] >> 1)
