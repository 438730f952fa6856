"""Generation: make clips from captions and known frames, with the settings of a sampler.

Text-to-video has no known frame, image-to-video the first one, continuation the first few, interpolation both ends.
One function does all of them: `Given` says which frames are known, at which level the others begin (video-to-video),
and which pixels are kept (inpainting).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from videodiff.diffusion.guidance import (
    Denoise,
    classifier_free,
    denoise_function,
    holding,
    reconstructing,
    with_history,
)
from videodiff.diffusion.path import Path, per_frame
from videodiff.diffusion.sampler import Sampler, generate, leading, schedule


class Given(NamedTuple):
    """The known parts of clips `b c t h w` before sampling.

    clip: the known values, anything elsewhere; known (b, t): frames that stay as they are, at the level held (b,);
    begin (b, t): the first level of the other frames, 1 for pure noise; kept (b, 1, t, h, w): values that stay as they
    are in other frames.
    """

    clip: Tensor
    known: Tensor
    begin: Tensor
    held: Tensor
    kept: Tensor

    def first(self, frames: int) -> Given:
        """Return what is given of the first frames."""
        clip, kept = self.clip[:, :, :frames], self.kept[:, :, :frames]
        return self._replace(clip=clip, known=self.known[:, :frames], begin=self.begin[:, :frames], kept=kept)


def nothing_given(noise: Tensor) -> Given:
    """Return the `Given` of clips that are made from noise alone."""
    b, _, t, h, w = noise.shape
    mask = torch.zeros(b, 1, t, h, w, dtype=torch.bool, device=noise.device)
    begin = torch.ones(b, t, device=noise.device, dtype=torch.float32)
    return Given(torch.zeros_like(noise), mask[:, 0, :, 0, 0].clone(), begin, torch.zeros_like(begin[:, 0]), mask)


class Network(NamedTuple):
    """A denoiser with the captions of a batch.

    `condition`: keyword arguments of the denoiser; `null`: replacements for them that stand for no caption.
    """

    denoiser: Callable[..., Tensor]
    condition: Mapping[str, Tensor]
    null: Mapping[str, Tensor]
    path: Path
    prediction: str

    def denoise(self) -> Denoise:
        """Return its denoise function with the captions."""
        return denoise_function(self.denoiser, dict(self.condition), self.path, self.prediction)

    def without_captions(self) -> Network:
        """Return the same network with no caption for any clip."""
        null = {key: value.expand_as(self.condition[key]) for key, value in self.null.items()}
        return self._replace(condition={**self.condition, **null})


# Far more than any sampler needs: a mistyped number ends in one line, not in days.
MOST_STEPS = 100_000
GUIDES = ("caption", "history")
SETTINGS = (
    *("steps", "scale", "shift", "interval", "lead", "apart", "rescale"),
    *("history", "history_level", "reconstruction", "guide", "noise"),
)


class Generation:
    """Sample clips with `steps` steps of `sampler`; `shift` moves the steps toward noise, `scale` 1 is no guidance.

    With `lead`, text-to-video samples this many frames first, and then the rest around them; meanwhile the rest waits
    as noise, or, with `apart`, is not there: for a network that saw such short clips in training. `interval`: the
    levels with guidance; `rescale`: how far frames return to their spread without guidance. `history`: the scale of
    guidance by the known frames, against the same frames at `history_level`; `reconstruction`: the weight of guidance
    by the kept pixels. `diffusion/guidance.py` has the formulas. `guide`: what guides a clip with known frames, its
    `caption` or the frames alone (`history`), which take the scale of the caption if they have none of their own.
    `noise`: the standard deviation of the noise that frames begin with; below 1 clips differ less, and fewer are
    strange (the temperature of Kingma and Dhariwal 2018, arXiv 1807.03039, section 6).
    """

    def __init__(
        self,
        sampler: Sampler,
        steps: int = 20,
        shift: float = 1.0,
        scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0),
        lead: int = 0,
        rescale: float = 0.0,
        history: float = 1.0,
        history_level: float = 1.0,
        reconstruction: float = 0.0,
        guide: str = "caption",
        apart: bool = False,
        noise: float = 1.0,
    ) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"sampler.steps: found {steps}, expected a whole number from 1 to {MOST_STEPS}")
        if not 0 < shift < math.inf:
            raise ValueError(f"sampler.shift: found {shift}, expected a number above 0; 1 shifts nothing")
        if not math.isfinite(scale):
            raise ValueError(f"sampler.scale: found {scale}, expected a finite number; 1 is no guidance")
        if lead < 0:
            raise ValueError(f"sampler.lead: found {lead}, expected 0 or more frames")
        if apart and not lead:
            raise ValueError("sampler.apart: found true without frames that lead, expected lead=1 or more beside it")
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"sampler.interval: found {list(interval)}, expected two levels from 0 to 1, rising")
        if not 0 <= rescale <= 1:
            raise ValueError(f"sampler.rescale: found {rescale}, expected a share from 0 to 1; 0 rescales nothing")
        if not math.isfinite(history):
            raise ValueError(f"sampler.history: found {history}, expected a finite number; 1 is no guidance")
        if not 0 < history_level <= 1:
            raise ValueError(f"sampler.history_level: found {history_level}, expected a level above 0, at most 1")
        if not 0 <= reconstruction < math.inf:
            raise ValueError(f"sampler.reconstruction: found {reconstruction}, expected 0 or more; 0 is no guidance")
        if not 0 < noise < math.inf:
            raise ValueError(f"sampler.noise: found {noise}, expected a number above 0; 1 is the noise of training")
        if guide not in GUIDES:
            raise ValueError(f"sampler.guide: found {guide!r}, expected {' or '.join(GUIDES)}")
        self.sampler, self.steps, self.shift, self.scale, self.lead = sampler, steps, shift, scale, lead
        self.interval = (float(interval[0]), float(interval[1]))
        self.rescale, self.history, self.history_level = rescale, history, history_level
        self.reconstruction, self.guide, self.apart, self.noise = reconstruction, guide, apart, noise

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values, with the name of the sampler."""
        return {"name": self.sampler.__name__, **{name: getattr(self, name) for name in SETTINGS}}

    @property
    def history_scale(self) -> float:
        """The scale of guidance by the known frames; where they guide and have none of their own, the caption's."""
        return self.scale if self.guide == "history" and self.history == 1.0 else self.history

    def without_caption(self) -> Generation:
        """Return these settings for clips that have no caption: guidance by the caption would change nothing."""
        found = copy.copy(self)
        found.history, found.scale = self.history_scale, 1.0
        return found

    def guided_by(self, guide: str) -> Generation:
        """Return these settings with another guide of clips with known frames."""
        found = copy.copy(self)
        found.guide = guide
        return found

    @torch.no_grad()
    def __call__(self, network: Network, noise: Tensor, given: Given | None = None) -> Tensor:
        """Return clips of the shape of `noise` (`b c t h w`), made around what is given."""
        given = nothing_given(noise) if given is None else given
        # Frames that lead are known afterwards, but guide nothing: they were not given.
        denoise = self.denoise(network, noise, given)
        given = self.led(network, noise, given) if self.apart else given
        taus = schedule(self.steps, given.known, self.shift, self.lead, given.begin, given.held)
        made = generate(self.sampler, denoise, network.path, self.begun(noise, taus[0]), given.clip, taus)
        return torch.where(per_frame(given.known) | given.kept, given.clip, made)

    def begun(self, noise: Tensor, tau: Tensor) -> Tensor:
        """Return the noise `b c t h w` of frames that begin at the levels `b t`: of size `self.noise` at level 1."""
        # A known frame, or one that begins with a video, has as much noise as the network is told.
        return torch.where(per_frame(tau == 1), self.noise * noise, noise)

    def led(self, network: Network, noise: Tensor, given: Given) -> Given:
        """Make the frames that lead, as clips of their own, and return `given` with these frames known."""
        leads = leading(given.known, given.begin, self.lead)
        if not leads.any():
            return given
        made = self(network, noise[:, :, : self.lead], given.first(self.lead))
        clip = torch.cat([made, given.clip[:, :, self.lead :]], 2)
        return given._replace(clip=torch.where(per_frame(leads), clip, given.clip), known=given.known | leads)

    def denoise(self, network: Network, noise: Tensor, given: Given) -> Denoise:
        """Return the denoise function with all requested guidance."""
        path, without = network.path, network.without_captions().denoise()
        # Beside clips with known frames there may be clips without.
        by_caption = ~given.known.any(1) if self.guide == "history" else None
        denoise = classifier_free(network.denoise(), without, self.scale, self.interval, self.rescale, by_caption)
        if bool(given.known.any()):
            denoise = with_history(denoise, path, given.known, noise, self.history_scale, self.history_level)
        denoise = reconstructing(denoise, path, given.clip, given.kept, self.reconstruction)
        return holding(denoise, given.clip, given.kept) if bool(given.kept.any()) else denoise


# The largest seed of a clip: torch takes one of 64 bits, and configuration holds none larger.
MOST_SEED = 2**63 - 1


def check_seeds(seed: int, clips: int) -> None:
    """Raise if one of these clips would have a seed that is too large: the clip at index i has the seed `seed` + i."""
    if seed + clips - 1 > MOST_SEED:
        most = f"at most {MOST_SEED - clips + 1}" if clips <= MOST_SEED else "fewer clips"
        raise ValueError(f"seed: found {seed} for {clips} clips, expected {most}: each has its own")


def clip_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Return noise (len(seeds), *shape), each clip from its own seed, so the batch size does not change any clip."""
    generators = [Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(*shape, generator=one, dtype=torch.float32) for one in generators])
