"""From captions and known frames to clips, for `sample`, `evaluate` and the samples during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from videodiff.codec.pixels import scale_pixels
from videodiff.generation.known import known_latents
from videodiff.generation.settings import Generation, clip_noise


class Parts(Protocol):
    """The parts of a model that sampling needs."""

    denoiser: nn.Module
    objective: Any
    codec: Any
    text: nn.Module


class Wanted(NamedTuple):
    """A clip to sample: its caption, its frame rate, the seed of its noise, and its known frames.

    `frames`: the known frames in order, uint8 `k h w c`. `latent`, instead: the latents `c t h w` of the whole clip.
    """

    caption: str
    fps: float
    seed: int
    known: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    latent: Tensor | None = None


def going_on(
    caption: str, fps: float, seed: int, given: int, frames: np.ndarray | None = None, latent: Tensor | None = None
) -> Wanted:
    """Return a clip that continues the first `given` frames of another clip; 0: sampled from its caption alone."""
    return Wanted(caption, fps, seed, tuple(range(given)), None if frames is None else frames[:given], latent)


def sample_all(
    parts: Parts, generation: Generation, wanted: Sequence[Wanted], shape: tuple[int, int, int], batch: int
) -> Iterator[list[np.ndarray]]:
    """Yield the clips in batches; the batch size does not change any clip."""
    for start in range(0, len(wanted), batch):
        yield sample_clips(parts, generation, wanted[start : start + batch], shape)


@torch.no_grad()
def sample_clips(
    parts: Parts, generation: Generation, wanted: Sequence[Wanted], shape: tuple[int, int, int]
) -> list[np.ndarray]:
    """Return the clips, uint8 `t h w c` of this shape `t h w`; known frames are returned unchanged.

    Each clip depends only on its own `Wanted`, not on the others in the batch.
    """
    device = next(parts.denoiser.parameters()).device
    noise = clip_noise(latent_shape(parts.codec, *shape), [one.seed for one in wanted]).to(device)
    clip = torch.zeros_like(noise)
    known = torch.zeros(len(noise), noise.shape[2], dtype=torch.bool, device=device)
    for place, one in enumerate(wanted):
        if one.known:
            where = known_latents(parts.codec, one.known)
            clip[place, :, where] = latents_of(parts.codec, one, where, device)
            known[place, where] = True
    text, mask = parts.text([one.caption for one in wanted])
    null_text, null_mask = parts.text([""])
    fps = torch.tensor([one.fps for one in wanted], dtype=torch.float32, device=device)
    made = generation(
        parts.denoiser, {"text": text, "text_mask": mask, "fps": fps}, {"text": null_text, "text_mask": null_mask},
        parts.objective.path, parts.objective.prediction, noise, clip, known,
    )  # fmt: skip
    videos = parts.codec.decode(made)
    return [keep_known(to_frames(video), one) for video, one in zip(videos, wanted, strict=True)]


def latent_shape(codec: Any, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape `c t h w` of the latents of a clip of this size."""
    _, fh, fw = codec.compression
    return codec.channels, codec.latent_frames(frames), height // fh, width // fw


def latents_of(codec: Any, one: Wanted, where: list[int], device: torch.device) -> Tensor:
    """Return the known latents `c k h w` of a clip, encoded from its known frames alone."""
    if one.latent is not None:
        return one.latent.to(device, torch.float32)[:, where]
    if one.frames is None:
        raise ValueError(f"known: found {len(one.known)} frames to keep, expected frames or latents to take them from")
    video = torch.from_numpy(one.frames).permute(3, 0, 1, 2)[None]
    return codec.encode(scale_pixels(video.to(device)))[0]


def keep_known(made: np.ndarray, one: Wanted) -> np.ndarray:
    """Replace the known frames in the decoded clip by the given ones, which the codec has changed slightly."""
    if one.frames is not None and one.known:
        made[list(one.known)] = one.frames
    return made


def to_frames(video: Tensor) -> np.ndarray:
    """Turn a video `c t h w` in [-1, 1] into uint8 `t h w c`."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
