"""Make clips from captions and known frames, for `sample`, `evaluate` and the samples during training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from videodiff.codec.pixels import scale_pixels
from videodiff.generation.known import known_latents
from videodiff.generation.settings import Generation, Given, Network, clip_noise, nothing_given
from videodiff.machine import memory
from videodiff.words import count_text


class Parts(Protocol):
    """The parts of a model that sampling needs."""

    denoiser: nn.Module
    objective: Any
    codec: Any
    text: nn.Module


class NotFiniteError(ValueError):
    """A sample with infinite values or NaN."""


class NoRoomError(ValueError):
    """Clips that do not fit into the memory."""


class Wanted(NamedTuple):
    """A clip to sample: its caption, its frame rate, the seed of its noise, and its given parts.

    frames: the known frames in order, uint8 `k h w c`; latent, instead: the latents `c t h w` of the whole clip. held:
    the noise level of the known frames for the network; they are returned unchanged at any level.

    whole: all frames of another video, uint8 `t h w c`. Sampling begins from them at the level `strength`; with `new`
    (t, h, w) it keeps them where `new` is false.
    """

    caption: str
    fps: float
    seed: int
    known: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    latent: Tensor | None = None
    held: float = 0.0
    whole: np.ndarray | None = None
    strength: float = 1.0
    new: np.ndarray | None = None


def going_on(
    caption: str, fps: float, seed: int, given: int, frames: np.ndarray | None = None, latent: Tensor | None = None
) -> Wanted:
    """Return a clip that continues the first `given` frames of another clip; with 0 it has only its caption."""
    return Wanted(caption, fps, seed, tuple(range(given)), None if frames is None else frames[:given], latent)


def sample_clips(
    parts: Parts, generation: Generation, wanted: Sequence[Wanted], shape: tuple[int, int, int], batch: int = 0
) -> list[np.ndarray]:
    """Return the clips, uint8 `t h w c` of this shape `t h w`; known frames are returned unchanged.

    Each clip depends only on its own `Wanted`, not on the others in the batch; NotFiniteError if one has values that
    are not finite. For `batch` see `sample_each`.
    """
    return all_finite(sample_each(parts, generation, wanted, shape, batch))


def all_finite(made: Sequence[np.ndarray | NotFiniteError]) -> list[np.ndarray]:
    """Return the clips; raise if one of them is none."""
    for clip in made:
        if isinstance(clip, NotFiniteError):
            raise clip
    return list(made)


@torch.no_grad()
def sample_each(
    parts: Parts, generation: Generation, wanted: Sequence[Wanted], shape: tuple[int, int, int], batch: int = 0
) -> list[np.ndarray | NotFiniteError]:
    """Return the clips, or why one is none.

    batch: the network sees this many clips, the last one again where there are fewer. Products of another size are
    rounded in another way, so a clip is the same to the bit only in batches of one size; 0: as many as there are.
    """
    count, size = len(wanted), max(len(wanted), batch)
    try:
        check_memory(parts, shape, size)
        return sample_batch(parts, generation, [*wanted, *[wanted[-1]] * (size - count)], shape)[:count]
    except (RuntimeError, MemoryError) as error:
        if not is_no_room(error):
            raise
        raise no_room(shape, size) from error


def sample_batch(
    parts: Parts, generation: Generation, wanted: Sequence[Wanted], shape: tuple[int, int, int]
) -> list[np.ndarray | NotFiniteError]:
    """Return the clips of one batch, or why one is none."""
    device = next(parts.denoiser.parameters()).device
    noise = clip_noise(latent_shape(parts.codec, *shape), [one.seed for one in wanted]).to(device)
    given = given_of(parts.codec, wanted, shape, noise)
    if not any(one.caption for one in wanted):
        generation = generation.without_caption()
    made = generation(network(parts, wanted, device), noise, given)
    return [
        found if isinstance(found, NotFiniteError) else keep_given(found, one)
        for found, one in zip(frames_of(parts.codec, made, wanted), wanted, strict=True)
    ]


def check_memory(parts: Parts, shape: tuple[int, int, int], clips: int) -> None:
    """Raise if the noise of a batch, or what one layer of the network reads and makes, takes more memory than there is.

    Linux promises memory that it does not have, and kills the process that uses it.
    """
    latent = latent_shape(parts.codec, *shape)
    weight = next(parts.denoiser.parameters())
    host = memory()
    device = torch.cuda.get_device_properties(weight.device).total_memory if weight.is_cuda else host
    # A network of the user's own may not say how wide it is.
    widest = parts.denoiser.widest(*latent[1:]) if hasattr(parts.denoiser, "widest") else 0
    if 4 * clips * math.prod(latent) > host or 2 * weight.element_size() * clips * widest > device:
        raise no_room(shape, clips)


def no_room(shape: tuple[int, int, int], clips: int) -> NoRoomError:
    """Return the error of a batch that does not fit into the memory."""
    return NoRoomError(
        f"memory: found too little for {f'{clips} clips' if clips > 1 else 'a clip'} of "
        f"{count_text(shape[0], 'frame')} of {shape[1]} x {shape[2]} pixels, expected room for all of it"
    )


@contextmanager
def needing_less(advice: str) -> Iterator[None]:
    """Add to the error of clips that do not fit into the memory which settings of the caller need less."""
    try:
        yield
    except NoRoomError as error:
        raise NoRoomError(f"{error}; {advice}") from error


def is_no_room(error: Exception) -> bool:
    """Return whether an error says that an allocation failed, on a GPU, in torch or in numpy."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def network(parts: Parts, wanted: Sequence[Wanted], device: torch.device) -> Network:
    """Return the network of a model with the captions and frame rates of these clips."""
    text, mask = parts.text([one.caption for one in wanted])
    null_text, null_mask = parts.text([""])
    fps = torch.tensor([one.fps for one in wanted], dtype=torch.float32, device=device)
    condition = {"text": text, "text_mask": mask, "fps": fps}
    null = {"text": null_text, "text_mask": null_mask}
    return Network(parts.denoiser, condition, null, parts.objective.path, parts.objective.prediction)


def given_of(codec: Any, wanted: Sequence[Wanted], shape: tuple[int, int, int], noise: Tensor) -> Given:
    """Return the known latents of these clips as a `Given`."""
    given = nothing_given(noise)
    for place, one in enumerate(wanted):
        check_sizes(one, shape)
        if one.whole is not None:
            given.clip[place] = codec.encode(as_video(one.whole, noise.device))[0]
            given.begin[place] = one.strength
            if one.new is not None:
                given.kept[place, 0] = kept_latents(codec, one.new, given.kept.shape[2:]).to(noise.device)
        if one.known:
            where = known_latents(codec, one.known)
            given.clip[place, :, where] = latents_of(codec, one, where, noise.device)
            given.known[place, where] = True
            given.held[place] = one.held
    return given


def check_sizes(one: Wanted, shape: tuple[int, int, int]) -> None:
    """Raise if given frames do not have the size of the clip."""
    for name, frames, count in (("known", one.frames, len(one.known)), ("given", one.whole, shape[0])):
        if frames is not None and one.latent is None and frames.shape[:3] != (count, *shape[1:]):
            raise ValueError(
                f"{name}: found {count_text(len(frames), 'frame')} of {frames.shape[1]} x {frames.shape[2]}, expected "
                f"{count} of {shape[1]} x {shape[2]}, the size of the clip"
            )


def frames_of(codec: Any, made: Tensor, wanted: Sequence[Wanted]) -> list[np.ndarray | NotFiniteError]:
    """Return the frames uint8 `t h w c` of sampled latents, or why they have none."""
    videos = codec.decode(made)
    return [
        fault_of(values, one, "values", "try a smaller scale=, more steps= or an older checkpoint=")
        or fault_of(video, one, "pixels", "float16 overflows in some codecs: codec.dtype in the config.yaml of the run")
        or to_frames(video)
        for values, video, one in zip(made, videos, wanted, strict=True)
    ]


def fault_of(values: Tensor, one: Wanted, name: str, advice: str) -> NotFiniteError | None:
    """Return the error of a clip with infinite values or NaN, None for any other clip."""
    if bool(values.isfinite().all()):
        return None
    count = int((~values.isfinite()).sum())
    return NotFiniteError(
        f"sample of seed {one.seed} ({one.caption!r}): found {count:,} of {values.numel():,} {name} that are not "
        f"finite, expected numbers; {advice}"
    )


def kept_latents(codec: Any, new: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Return the kept latents (t, h, w): those whose pixels are all kept."""
    ft, fh, fw = codec.compression
    mask = torch.from_numpy(np.ascontiguousarray(new)).float()[None, None]
    frames = [mask[:, :, :1], mask[:, :, 1:]] if codec.causal and ft > 1 else [mask[:, :, :0], mask]
    sizes = ((1, fh, fw), (ft, fh, fw))
    pooled = [max_pool3d(one, size)[0, 0] for one, size in zip(frames, sizes, strict=True) if one.shape[2]]
    made = torch.cat(pooled) > 0
    if made.shape != tuple(shape):
        raise ValueError(f"mask: found {tuple(new.shape)}, expected a size that gives {tuple(shape)} latents")
    return ~made


def latent_shape(codec: Any, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape `c t h w` of the latents of a clip of this size."""
    _, fh, fw = codec.compression
    return codec.channels, codec.latent_frames(frames), height // fh, width // fw


def latents_of(codec: Any, one: Wanted, where: list[int], device: torch.device) -> Tensor:
    """Return the known latents `c k h w` of a clip, encoded from its known frames alone."""
    if one.latent is not None:
        return one.latent.to(device, torch.float32)[:, where]
    if one.frames is None:
        raise ValueError(
            f"known: found {count_text(len(one.known), 'frame')} to keep, expected frames or latents to take them from"
        )
    return codec.encode(as_video(one.frames, device))[0]


def as_video(frames: np.ndarray, device: torch.device) -> Tensor:
    """Turn uint8 `t h w c` into a video `1 c t h w` in [-1, 1]."""
    return scale_pixels(torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(device))


def keep_given(made: np.ndarray, one: Wanted) -> np.ndarray:
    """Replace known frames and kept pixels in the decoded clip by the given ones, which the codec changed slightly."""
    if one.frames is not None and one.known:
        made[list(one.known)] = one.frames
    if one.whole is not None and one.new is not None:
        made = np.where(one.new[..., None], made, one.whole)
    return made


def to_frames(video: Tensor) -> np.ndarray:
    """Turn a video `c t h w` in [-1, 1] into uint8 `t h w c`."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
