"""A flow map: one network that goes from any noise level to any lower one in one step, frame by frame.

    z_rho = z - (tau - rho) u(z, tau, rho)

u is the mean velocity between the levels (Geng et al. 2025, arXiv 2505.13447); at rho = tau it is the velocity v
itself, so a trained denoiser is a valid start. If the start of a step moves along its own path, the end stays:

    d/d tau [(tau - rho) u(z, tau, rho)] = v(z, tau)

The loss is a central difference of this identity between tau and a level sigma, which lies between tau and rho. Each
frame has its own three levels:

    (tau - rho) u(z, tau, rho)  =  (tau - sigma) v(z_mid, mid)  +  (sigma - rho) u(z_sigma, sigma, rho),
    mid = (tau + sigma) / 2

where z_mid and z_sigma follow the network's own velocity. Only the left side is trained. It learns from lower levels
only, so errors shrink from step to step; the same identity solved for u at the middle, v minus a derivative of u, lets
them grow (docs/few_steps.md). There is no critic, no second network, no forward mode and no division by a small number,
so bfloat16 is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from videodiff.device import send
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Condition, Denoiser, Objective, drop, mean_over_noisy
from videodiff.diffusion.path import Path, per_frame
from videodiff.diffusion.prediction import convert


class FlowMap(Objective):
    """The squared difference of both sides of the identity, one number a clip; the network must take two levels.

    `still` is the share of clips that learn v from the data (rho = tau), `clean` the share of clips whose step ends at
    0; the others end at a level drawn uniformly between, before the shift. `difference` is the distance from tau to
    sigma as a share of the step, before the shift.
    """

    two_levels = True

    def __init__(
        self,
        path: Path,
        levels: NoiseLevels,
        prediction: str = "v",
        loss: str = "v",
        floor: float = 0.05,
        caption_dropout: float = 0.1,
        still: float = 0.5,
        clean: float = 0.25,
        difference: float = 0.25,
    ) -> None:
        super().__init__(path, levels, prediction, loss, floor, caption_dropout)
        if not 0 < still <= 1 - clean:
            raise ValueError(
                f"objective.still: found {still} beside clean = {clean}, expected above 0 (there the network learns "
                "its velocity) and at most 1 in all"
            )
        self.still, self.clean, self.difference = still, clean, difference

    def __call__(
        self, denoiser: Denoiser, x: Tensor, condition: Condition, null: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the loss of each clip (b,); the arguments are those of `Objective`."""
        draws = [self.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]
        tau, dropped = (torch.stack([d[i] for d in draws]) for i in (0, 2))
        eps = torch.stack([d[1] for d in draws])
        sigma, rho = (
            torch.stack([self.lower(clip, seed, part) for clip, seed in zip(x, seeds, strict=True)])
            for part in (self.difference, 1.0)
        )
        condition = drop(condition, null, send(dropped, x.device))
        return self.map_error(denoiser, x, eps, (tau, sigma, rho), condition)

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
        """Return the mean squared error of each clip over its noisy frames (b,), at given noise.

        levels: tau, sigma and rho, each `b t`, on the host, as they decide there which clips take a step.
        """
        moving = torch.nonzero((levels[0] > levels[2]).any(1))[:, 0]
        # A rank without such a clip makes the same passes, because under ZeRO 3 all ranks gather weights together.
        moving = send(moving if len(moving) else torch.zeros(1, dtype=torch.long), x.device)
        tau, sigma, rho = (send(level, x.device) for level in levels)
        z, v = self.path.mix(x, eps, tau), self.path.velocity(x, eps, tau)
        some = {name: value[moving] for name, value in condition.items()}
        mean = self.mean_velocity(denoiser, z[moving], (tau[moving], sigma[moving], rho[moving]), some)
        # In a clip that takes a step even still frames learn from the network; other clips learn from the data only.
        still = (tau[moving] <= rho[moving]).all(1).view(-1, 1, 1, 1, 1)
        v = v.index_copy(0, moving, torch.where(still, v[moving], mean))
        made = convert(denoiser(z, tau, rho=rho, **condition), z, tau, self.path, self.prediction, self.floor)
        # The target goes through the same floor, so that the exact output has no error at any level.
        output = getattr(convert(v, z, tau, self.path, "v"), self.prediction)
        wanted = convert(output, z, tau, self.path, self.prediction, self.floor)
        return mean_over_noisy(getattr(made, self.loss) - getattr(wanted, self.loss), tau)

    @torch.no_grad()
    def mean_velocity(self, denoiser: Denoiser, z: Tensor, levels: Sequence[Tensor], condition: Condition) -> Tensor:
        """Return the mean velocity from tau to rho, `b c t h w`, computed from the lower levels."""
        tau, sigma, rho = levels
        middle = (tau + sigma) / 2

        def slope(z: Tensor, tau: Tensor, rho: Tensor) -> Tensor:
            output = denoiser(z, tau, rho=rho, **condition)
            return convert(output, z, tau, self.path, self.prediction, self.floor).v

        z_middle = z + per_frame(middle - tau) * slope(z, tau, tau)
        v = slope(z_middle, middle, middle)
        u = slope(z + per_frame(sigma - tau) * v, sigma, rho)
        # The weight of v; for a still frame it is 1.
        part = torch.where(tau > rho, (tau - sigma) / torch.where(tau > rho, tau - rho, 1.0), 1.0)
        return u + per_frame(part) * (v - u)


def second_seed(seed: int) -> int:
    """Return a second seed, so that further draws leave those of `Objective.draw` unchanged."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0] >> 1)
