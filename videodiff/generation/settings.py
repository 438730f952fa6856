"""Generation: captions and known frames to clips, with the settings of a sampler.

Text-to-video has no known frame, image-to-video the first one, continuation the first few, interpolation both ends.
One function serves all of them; a mask marks the known frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from videodiff.diffusion.guidance import classifier_free, denoise_function
from videodiff.diffusion.path import Path
from videodiff.diffusion.sampler import Sampler, generate, schedule


class Generation:
    """Sample clips with `steps` steps of `sampler`; `shift` moves the steps toward noise, `scale` 1 is no guidance.

    With `lead`, text-to-video samples this many frames first, and then the rest around them.
    """

    def __init__(
        self,
        sampler: Sampler,
        steps: int = 20,
        shift: float = 1.0,
        scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0),
        lead: int = 0,
    ) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"sampler.steps: found {steps}, expected at least 1")
        if not 0 < shift < math.inf:
            raise ValueError(f"sampler.shift: found {shift}, expected a number above 0; 1 shifts nothing")
        if not math.isfinite(scale):
            raise ValueError(f"sampler.scale: found {scale}, expected a finite number; 1 is no guidance")
        if lead < 0:
            raise ValueError(f"sampler.lead: found {lead}, expected 0 or more frames")
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"sampler.interval: found {list(interval)}, expected two levels from 0 to 1, rising")
        self.sampler, self.steps, self.shift, self.scale, self.lead = sampler, steps, shift, scale, lead
        self.interval = (float(interval[0]), float(interval[1]))

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values, with the name of the sampler."""
        names = ("steps", "scale", "shift", "interval", "lead")
        return {"name": self.sampler.__name__, **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Callable[..., Tensor],
        condition: Mapping[str, Tensor],
        null: Mapping[str, Tensor],
        path: Path,
        prediction: str,
        noise: Tensor,
        clip: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return clips of the shape of `noise` (`b c t h w`); frames marked in `known` (b, t) are taken from `clip`.

        `condition`: keyword arguments of the denoiser; `null`: replacements for them that stand for no caption.
        """
        if clip is None and known is not None and bool(known.any()):
            raise ValueError(f"known: found {int(known.sum())} marked frames, expected a clip to take them from")
        b, _, t = noise.shape[:3]
        known = torch.zeros(b, t, dtype=torch.bool, device=noise.device) if known is None else known
        without = {**condition, **{key: value.expand_as(condition[key]) for key, value in null.items()}}
        denoise = classifier_free(
            denoise_function(denoiser, dict(condition), path, prediction),
            denoise_function(denoiser, without, path, prediction),
            self.scale,
            self.interval,
        )
        taus = schedule(self.steps, known, self.shift, self.lead)
        return generate(self.sampler, denoise, path, noise, noise if clip is None else clip, taus)


def clip_noise(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return noise (len(seeds), *shape), each clip from its own seed, so a batch of any size gives the same clips."""
    return torch.stack(
        [torch.randn(*shape, generator=Generator(device).manual_seed(seed), device=device) for seed in seeds]
    )
