"""A flow map: one network that goes from one noise level to a lower one in one step, frame by frame.

    z_rho = z - (tau - rho) u(z, tau, rho)

u is the mean velocity between the levels (Geng et al. 2025, arXiv 2505.13447); at rho = tau it is the velocity v
itself, so a trained denoiser is a valid start. Each frame has its own two levels. The target follows v from tau to rho
by several steps of a solver:

    (tau - rho) u(z, tau, rho)  =  z - z_rho

v is that of the same network, called without rho: then it meets none of the weights for steps (`denoiser/change.py`),
and as only these learn, v stays what it was. So there is no second network, no critic, no forward mode and no division
by a small number, and bfloat16 is enough.

The way may be guided, by the known frames or by the caption where hardly any are known: a step then does what costs a
sampler a second pass of the network (Meng et al. 2023, arXiv 2210.03142, at one scale).

Some steps are followed from their middle, to which the network's own step leads: that of the sampler with twice as many
steps, which it learns too. Then v comes last, sees the clip that the network made, and sharpens that one (a Lagrangian
target: Boffi et al. 2025, arXiv 2505.18825, without its derivative).

A step from noise to a clip ends at one clip of many, and the network is unsure which, so the best answer to a distance
alone lies between all. Where next to no frame is known, the loss is therefore an energy score (Gneiting and Raftery
2007, equation 22; De Bortoli et al. 2025, arXiv 2502.02483): two steps from two noises also keep a distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from videodiff.device import send
from videodiff.diffusion.guidance import denoise_function, with_history
from videodiff.diffusion.objective import Condition, Denoiser, Objective, drop, mean_where
from videodiff.diffusion.path import per_frame
from videodiff.diffusion.prediction import convert, divide
from videodiff.diffusion.sampler import dpm_solver_2m, flow_map


@dataclass(eq=False)
class FlowMap(Objective):
    """The distance of a step from the end of its path, one number a clip; the network needs weights for steps.

    A clip takes a step of a sampler: its number of steps is drawn from `steps`, which of them evenly. `pieces` is the
    number of steps of DPM-Solver++ that the target follows on the way. Where `steps` has a number and its double, the
    network's own step takes the first half of a share `own` of the longer steps. `frame_error` measures a frame, with
    the weights `near` and `whole`; its root counts by its square where it is small, by its size where it is beyond
    `width`. From the error of a clip with at most `lead` known frames, as many as lead in a sampler, comes off `spread`
    times the distance to the end of a step from another noise; 1 makes an energy score. `history` is the scale at which
    known frames guide the way; 1 is no guidance. With a `scale` other than 1 the caption guides clips with at most
    `lead` known frames instead.
    """

    takes_steps = True

    steps: Sequence[int] = (1, 2, 4)
    pieces: int = 5
    own: float = 0.5
    width: float = 0.1
    near: float = 3.0
    whole: float = 20.0
    spread: float = 0.5
    history: float = 1.0
    scale: float = 1.0
    lead: int = 0

    @property
    def forwards(self) -> float:
        """The passes without a gradient of a clip: one a piece, two where it is guided, and the own steps."""
        return self.pieces * (2.0 if self.guided else 1.0) + self.own_steps

    @property
    def guided(self) -> bool:
        """Whether a piece takes a second pass, without what guides."""
        return self.history != 1.0 or self.scale != 1.0

    @property
    def own_steps(self) -> float:
        """The own steps, from 0 to 2: to the middle, and from another noise. Each costs every clip a pass."""
        return float(self.own > 0) + float(self.spread > 0)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, condition: Condition, null: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return the loss of each clip (b,); the arguments are those of `Objective`."""
        draws = [self.draw(clip, seed) for clip, seed in zip(x, seeds, strict=True)]
        dropped, eps = torch.stack([d[2] for d in draws]), torch.stack([d[1] for d in draws])
        levels = send(torch.stack([self.way(clip, seed) for clip, seed in zip(x, seeds, strict=True)], 1), x.device)
        condition = drop(condition, null, send(dropped, x.device))
        second = self.second(denoiser, x, levels, condition, seeds) if self.spread else None
        return self.map_error(denoiser, x, eps, levels, condition, null, second)

    def way(self, clip: Tensor, seed: int) -> Tensor:
        """Return the levels `pieces + 2, t` that a clip passes, on the host; known and waiting frames stay.

        The network's own step leads from the first to the second level, or the clip stays there.
        """
        _, t, h, w = clip.shape
        draw = Generator().manual_seed(further_seed(seed, 1))
        steps = self.steps[int(torch.randint(len(self.steps), (), generator=draw))]
        begin = float(torch.randint(steps, (), generator=draw))
        halved = 2 * steps in self.steps and float(torch.rand((), generator=draw, dtype=torch.float32)) < self.own

        def at(part: float) -> Tensor:
            left = 1 - (begin + part) / steps
            # A step is one of a sampler that begins at pure noise.
            return self.levels(t, t * h * w, Generator().manual_seed(seed), lambda tau: torch.full_like(tau, left))

        middle = 0.5 if halved else 0.0
        return torch.stack([at(0.0), *(at(part) for part in np.linspace(middle, 1.0, self.pieces + 1).tolist())])

    def map_error(
        self,
        denoiser: Denoiser,
        x: Tensor,
        eps: Tensor,
        levels: Tensor,
        condition: Condition,
        null: Condition,
        second: Tensor | None = None,
    ) -> Tensor:
        """Return the mean error over the moving frames of each clip (b,), at given noise and levels `n b t`.

        `second`: what the network makes of these clips from another noise, where that counts.
        """
        tau, rho = levels[0], levels[-1]
        z = self.path.mix(x, eps, tau)
        there = self.follow(denoiser, z, levels, condition, null, eps)
        average = divide(z - there, per_frame(tau - rho), 0.0)
        made = self.for_loss(denoiser(z, tau, rho=rho, **condition), z, tau)
        # The target goes through the same floor, so that the exact output has no error at any level.
        output = getattr(convert(average, z, tau, self.path, "v"), self.prediction)
        error = self.distance(made, self.for_loss(output, z, tau))
        if second is not None:
            few = (tau == 0).sum(1, keepdim=True) <= self.lead
            error = error - self.spread * few * self.distance(made, second)
        # A frame that waits while others move learns nothing new. If it counted, it would only dilute their errors.
        return mean_where(error, tau > rho)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return how far apart the frames are (b, t): by the square up to `width`, by the size beyond.

        The end of a path is one clip, but the network is unsure which. By the square its best answer is the mean of
        all ends, a blur; by the size of each pixel's error it is each pixel's median, which has no small ball.
        """
        squared = frame_error(one - other, self.near, self.whole)
        return 2 * self.width * ((squared + self.width**2).sqrt() - self.width)

    @torch.no_grad()
    def second(
        self, denoiser: Denoiser, x: Tensor, levels: Tensor, condition: Condition, seeds: Sequence[int]
    ) -> Tensor:
        """Return what the network makes in its one step of the same clips from another noise, without a gradient.

        By symmetry the gradient of one of the two is half of that of both, in the mean over noises.
        """
        eps = torch.stack([self.draw(clip, further_seed(seed, 2))[1] for clip, seed in zip(x, seeds, strict=True)])
        tau, rho = levels[0], levels[-1]
        z = self.path.mix(x, eps, tau)
        return self.for_loss(denoiser(z, tau, rho=rho, **condition), z, tau)

    @torch.no_grad()
    def follow(
        self, denoiser: Denoiser, z: Tensor, levels: Tensor, condition: Condition, null: Condition, noise: Tensor
    ) -> Tensor:
        """Return where the path of v leads through these levels `n b t`, after the network's own step to the second.

        Known frames are those at level 0 from the first level on. Without them the network sees `noise` in their place,
        without the caption `null`.
        """
        denoise = denoise_function(denoiser, dict(condition), self.path, self.prediction)
        if self.own:
            z = flow_map(denoise, z, levels[:2], self.path)
        if self.guided:
            known = levels[0] == 0
            by_caption = (known.sum(1) <= self.lead) & (self.scale != 1.0)
            blind = denoise_function(denoiser, drop(condition, null, by_caption), self.path, self.prediction)
            # Of the clips' type: a training in half precision makes tensors of another.
            scale = torch.where(by_caption, torch.full_like(z[:, 0, 0, 0, 0], self.scale), self.history)
            denoise = with_history(denoise, self.path, known & ~by_caption[:, None], noise, scale, blind=blind)
        return dpm_solver_2m(denoise, z, levels[1:], self.path)


def frame_error(difference: Tensor, near: float, whole: float) -> Tensor:
    """Return the mean square (b, t) of a difference `b c t h w`, plus those of its means, over 5 x 5 and a whole frame.

    These count `near` and `whole` times; beyond the frame are zeros. A ball a little beside its place and a blurred one
    have errors of both signs, which a mean leaves out; a ball that is too small or too faint has not.
    """
    frames = rearrange(difference, "b c t h w -> (b t) c h w")
    around = avg_pool2d(frames, 5, stride=1, padding=2)
    over = [(1.0, frames), (near, around), (whole, frames.mean((2, 3), keepdim=True))]
    errors = torch.stack([weight * part.square().mean((1, 2, 3)) for weight, part in over]).sum(0)
    return rearrange(errors, "(b t) -> b t", b=len(difference))


def further_seed(seed: int, which: int) -> int:
    """Return another seed of a clip, so that further draws leave those of `Objective.draw` unchanged."""
    return int(np.random.SeedSequence([seed, which]).generate_state(1, np.uint64)[0] >> 1)
