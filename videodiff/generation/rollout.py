"""Clips of any length, window by window, in constant memory: finished frames are yielded and forgotten.

`continued`: each window continues the last frames of the one before. `rolled`: one window slides over the clip, and the
noise of its frames grows with their time, so each step of the window finishes the next frame (Ruhe et al. 2024, arXiv
2402.09470; FIFO-Diffusion, arXiv 2405.11473). `between_keys`: frames far apart first, then the frames between them.

In all of them the frames that a window continues carry a little noise, `held`, and the network knows this level.
Sampled frames differ from training frames; the noise hides the difference, so that it does not add up.

A caption says how a clip begins. Later windows continue what they see, and a caption that guides them too ("moves
right") contradicts the history once the ball has come back from a wall. So the history may guide them instead; but a
network that has not learned enough of continuations forgets objects then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videodiff.diffusion.levels import shift_levels
from videodiff.generation.known import check_given, usual_given
from videodiff.generation.sampling import (
    Parts,
    Wanted,
    all_finite,
    as_video,
    frames_of,
    latent_shape,
    network,
    sample_clips,
)
from videodiff.generation.settings import Generation, clip_noise, nothing_given

Shape = tuple[int, int, int]


class Rollout(NamedTuple):
    """How a long clip is made: its number of frames, the given frames of a window, and their noise level.

    later: captions that replace the first one, each with the frame from which on it holds. A caption guides the window
    in which it begins. `after` says what it does in the windows after it: `guide` them too, `tell` them what there is,
    while the history guides, or nothing (`drop`).
    """

    total: int
    overlap: int
    held: float = 0.02
    later: tuple[tuple[int, str], ...] = ()
    after: str = "guide"

    def led(self, generation: Generation, first: str, frame: int, lead: int) -> tuple[Generation, str]:
        """Return settings and caption of a window with new frames from `frame` on; `lead` frames later is the next."""
        begin, caption = max((one for one in ((0, first), *self.later) if one[0] <= frame), key=lambda one: one[0])
        if self.after == "guide" or frame < begin + lead:
            return generation.guided_by("caption"), caption
        return generation.guided_by("history"), caption if self.after == "tell" else ""


def with_keys(later: Sequence[tuple[int, str]], window: int, overlap: int) -> tuple[tuple[int, str], ...]:
    """Return later captions at the frames where a clip of `between_keys` can take them up.

    The frames far apart are made first, in windows, and what lies between two of them has to agree with both. So a
    caption begins with the first window of frames far apart that begins with it or after it.
    """
    stride, step = window - 1, window - overlap
    found = {}
    for begin, caption in later:
        number = max(0, math.ceil((begin - window * stride) / (step * stride)))
        found[(window + number * step) * stride] = caption
    return tuple(found.items())


def overlap_of(codec: object, denoiser: object, window: int, asked: int | None) -> int:
    """Return how many of the last frames a window continues: as asked, else the usual number of given frames."""
    if asked is None:
        return usual_given(codec, window, denoiser)
    check_given("overlap", asked, codec, window)
    return asked


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a part of a clip: the first part has the seed of the clip."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


def continued(parts: Parts, generation: Generation, one: Wanted, shape: Shape, how: Rollout) -> Iterator[np.ndarray]:
    """Yield the frames `h w c` of a clip; each window continues the last frames of the one before."""
    return islice(windows(parts, generation, one, shape, how), how.total)


def windows(
    parts: Parts, generation: Generation, one: Wanted, shape: Shape, how: Rollout, stride: int = 1
) -> Iterator[np.ndarray]:
    """Yield frames `h w c` endlessly; two neighbours are `stride` frames of the clip apart."""
    (made,) = sample_clips(parts, generation, [one], shape)
    yield from made
    number, step = 0, shape[0] - how.overlap
    while True:
        frame = (shape[0] + number * step) * stride
        settings, caption = how.led(generation, one.caption, frame, step * stride)
        number += 1
        history = made[-how.overlap :].copy()
        known = tuple(range(how.overlap))
        then = Wanted(caption, one.fps, seed_of(one.seed, number), known, history, held=how.held)
        (made,) = sample_clips(parts, settings, [then], shape)
        yield from made[how.overlap :]


def between_keys(parts: Parts, generation: Generation, one: Wanted, shape: Shape, how: Rollout) -> Iterator[np.ndarray]:
    """Yield the frames of a clip; every (window - 1)-th frame is made first, at that much lower a frame rate."""
    stride = shape[0] - 1
    if parts.codec.causal and parts.codec.compression[0] > 1:
        raise ValueError(
            f"rollout: found keys with the codec {parts.codec.name}, expected continue: its clips cannot be given "
            "their last frame"
        )
    first = one._replace(fps=one.fps / stride)
    keys = windows(parts, generation, first, shape, how, stride)

    def segments() -> Iterator[np.ndarray]:
        for number, ends in enumerate(pairwise(keys)):
            seed, frames = seed_of(one.seed, number + 2**32), np.stack(ends)
            settings, caption = how.led(generation, one.caption, number * stride, stride)
            then = Wanted(caption, one.fps, seed, (0, stride), frames, held=how.held)
            yield sample_clips(parts, settings, [then], shape)[0][:-1]

    return islice(chain.from_iterable(segments()), how.total)


@torch.no_grad()
def rolled(parts: Parts, generation: Generation, one: Wanted, shape: Shape, how: Rollout) -> Iterator[np.ndarray]:
    """Yield the frames of a clip; a window slides over it by one frame whenever its first noisy frame is clean."""
    if parts.codec.compression[0] > 1:
        raise ValueError(
            f"rollout: found rolling with the codec {parts.codec.name}, expected continue: it makes no single frames"
        )
    # Sample two windows as usual: the history, and the frames that the ramp starts from.
    begun = list(islice(windows(parts, generation, one, shape, how), 2 * shape[0] - how.overlap))
    yield from begun[: min(shape[0], how.total)]
    device = next(parts.denoiser.parameters()).device
    clean = as_video(np.stack(begun[shape[0] - how.overlap :]), device)
    clean, noisy = parts.codec.encode(clean), shape[0] - how.overlap
    size = latent_shape(parts.codec, *shape)
    ramp = ramp_of(noisy, generation, how, device)
    noise = frame_noise(size, one.seed, range(shape[0]), device)
    path, history = parts.objective.path, clean[:, :, : how.overlap]
    # An encoder may be larger than the denoiser, and a caption holds for many frames.
    told = cache(lambda caption: network(parts, [one._replace(caption=caption)], device))
    z = path.mix(clean, generation.begun(noise, ramp[0]), ramp[0])
    for number in range(how.total - shape[0]):
        given = nothing_given(noise)
        given.known[:, : how.overlap] = True
        z[:, :, : how.overlap] = path.mix(history, noise[:, :, : how.overlap], ramp[0, :, : how.overlap])
        settings, caption = how.led(generation, one.caption, shape[0] + number, noisy)
        settings = settings if caption else settings.without_caption()
        denoise = settings.denoise(told(caption), noise, given)
        z = generation.sampler(denoise, z, ramp, path)
        ready = z[:, :, how.overlap : how.overlap + 1]
        yield all_finite(frames_of(parts.codec, ready, [one]))[0][0]
        history = torch.cat([history[:, :, 1:], ready], dim=2)
        fresh = frame_noise(size, one.seed, [shape[0] + number], device)
        noise = torch.cat([noise[:, :, 1:], fresh], dim=2)
        z = torch.cat([z[:, :, 1:], settings.noise * fresh], dim=2)


def ramp_of(noisy: int, generation: Generation, how: Rollout, device: torch.device) -> Tensor:
    """Return the levels `n + 1, 1, t` that move each noisy frame of a window to the level of the frame before it.

    On its whole way a frame passes about the `steps` of the sampler.
    """
    inner = max(1, round(generation.steps / noisy))
    place = torch.arange(1, noisy + 1, device=device) - torch.linspace(0, 1, inner + 1, device=device)[:, None]
    ramp = shift_levels(place / noisy, generation.shift)
    history = torch.full((inner + 1, how.overlap), how.held, device=device)
    return torch.cat([history, ramp], dim=1)[:, None]


def frame_noise(size: tuple[int, int, int, int], seed: int, numbers: range | list[int], device: torch.device) -> Tensor:
    """Return noise `1 c k h w`; the noise of each frame depends on the seed and the frame's number."""
    c, _, h, w = size
    seeds = [seed_of(seed, number + 2**31) for number in numbers]
    return torch.cat([clip_noise((c, 1, h, w), [one]) for one in seeds], dim=2).to(device)


Roll = Callable[[Parts, Generation, Wanted, Shape, Rollout], Iterator[np.ndarray]]
KINDS: dict[str, Roll] = {"continue": continued, "rolling": rolled, "keys": between_keys}
