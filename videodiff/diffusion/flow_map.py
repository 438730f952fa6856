"""A flow map: one network that goes from one noise level to a lower one in one step, frame by frame.

    z_rho = z - (tau - rho) u(z, tau, rho)

u is the mean velocity between the levels (Geng et al. 2025, arXiv 2505.13447); at rho = tau it is the velocity v
itself, so a trained denoiser is a valid start. Each frame has its own two levels. The target follows v from tau to rho
by several steps of a solver:

    (tau - rho) u(z, tau, rho)  =  z - z_rho

It never takes the network's own long steps, so no error of theirs comes back in a later target. v is that of a
`teacher`, as a rule the network as it was at the start, or the network's own. There is no critic, no forward mode and
no division by a small number, so bfloat16 is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor, nn

from videodiff.device import send
from videodiff.diffusion.guidance import denoise_function
from videodiff.diffusion.objective import Condition, Denoiser, Objective, drop, mean_where
from videodiff.diffusion.path import per_frame
from videodiff.diffusion.prediction import convert
from videodiff.diffusion.sampler import dpm_solver_2m


@dataclass(eq=False)
class FlowMap(Objective):
    """The distance of a step from the end of its path, one number a clip; the network must take two levels.

    A clip takes a step of a sampler: its number of steps is drawn from `steps`, which of them evenly. `pieces` is the
    number of steps of DPM-Solver++ that the target follows on the way. The error of a pixel counts by its square where
    it is small, by its size where it is beyond `width`. `still` is the share of clips that take no step and learn v
    from the data. `teacher` is a run or a checkpoint whose v the path follows, which the builder of the objective loads
    into `network`; None: the network's own.
    """

    two_levels = True

    steps: Sequence[int] = (1, 2, 4)
    pieces: int = 6
    width: float = 0.1
    still: float = 0.5
    teacher: str | None = None
    network: nn.Module | None = field(default=None, init=False, repr=False)

    @property
    def forwards(self) -> float:
        """The passes without a gradient of a clip: one a piece where it takes a step."""
        return self.pieces * (1 - self.still)

    @property
    def taught(self) -> bool:
        """Whether a second network is in memory."""
        return self.teacher is not None

    def __call__(
        self, denoiser: Denoiser, x: Tensor, condition: Condition, null: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the loss of each clip (b,); the arguments are those of `Objective`."""
        draws = [self.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]
        dropped, eps = torch.stack([d[2] for d in draws]), torch.stack([d[1] for d in draws])
        levels = torch.stack([self.way(clip, seed) for clip, seed in zip(x, seeds, strict=True)], 1)
        return self.map_error(denoiser, x, eps, levels, drop(condition, null, send(dropped, x.device)))

    def way(self, clip: Tensor, seed: int) -> Tensor:
        """Return the levels `pieces + 1, t`, on the host, that a clip passes; they end at rho, and may stay there."""
        _, t, h, w = clip.shape
        own = Generator().manual_seed(second_seed(seed))
        still = bool(torch.rand((), generator=own) < self.still)
        steps = self.steps[int(torch.randint(len(self.steps), (), generator=own))]
        begin = float(torch.randint(steps, (), generator=own))

        def at(piece: int) -> Tensor:
            left = 1 - (begin + piece / self.pieces) / steps
            # A step is one of a sampler that begins at pure noise.
            return self.levels(
                t, t * h * w, Generator().manual_seed(seed), lambda tau: tau if still else torch.full_like(tau, left)
            )

        return torch.stack([at(piece) for piece in range(self.pieces + 1)])

    def map_error(self, denoiser: Denoiser, x: Tensor, eps: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        """Return the mean error of each clip (b,) at given noise.

        It is the mean over the noisy frames of a clip that takes no step, and over the moving frames of one that does.
        levels: `n b t`, from tau down to rho, on the host, as they decide there which clips take a piece.
        """
        tau, rho = send(levels[0], x.device), send(levels[-1], x.device)
        z, v = self.path.mix(x, eps, tau), self.path.velocity(x, eps, tau)
        step = per_frame(tau - rho)
        there = self.follow(denoiser, z, levels, condition)
        # A clip that takes no step learns from the data.
        still = (tau <= rho).all(1, keepdim=True)
        mean = torch.where(step > 0, (z - there) / torch.where(step > 0, step, 1.0), v)
        made = convert(denoiser(z, tau, rho=rho, **condition), z, tau, self.path, self.prediction, self.floor)
        # The target goes through the same floor, so that the exact output has no error at any level.
        output = getattr(convert(mean, z, tau, self.path, "v"), self.prediction)
        wanted = convert(output, z, tau, self.path, self.prediction, self.floor)
        squared = (getattr(made, self.loss) - getattr(wanted, self.loss)).square()
        # v is a mean over clips, which only the square finds. The end of a path is one clip.
        sharp = 2 * self.width * ((squared + self.width**2).sqrt() - self.width)
        # A frame that waits while others move learns nothing new. If it counted, it would only dilute their errors.
        counted = torch.where(still, tau > 0, tau > rho)
        return mean_where(torch.where(per_frame(still), squared, sharp), counted)

    @torch.no_grad()
    def follow(self, denoiser: Denoiser, z: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        """Return where the path of v leads from z, through these levels `n b t`."""
        network = denoiser if self.network is None else self.network.to(z.device)
        moving = torch.nonzero((levels[0] > levels[-1]).any(1))[:, 0]
        # A rank without such a clip makes the same passes, because under ZeRO 3 all ranks gather weights together.
        moving = moving if len(moving) else torch.zeros(1, dtype=torch.long)
        on, taus = send(moving, z.device), send(levels[:, moving], z.device)
        some = {name: value[on] for name, value in condition.items()}
        denoise = denoise_function(network, some, self.path, self.prediction)
        return z.index_copy(0, on, dpm_solver_2m(denoise, z[on], taus, self.path))


def second_seed(seed: int) -> int:
    """Return a second seed, so that further draws leave those of `Objective.draw` unchanged."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0] >> 1)
