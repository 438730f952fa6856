"""Which frames of a clip may be given to a codec, and which latents are known by them: one rule for all who sample.

Frames are counted in the clip, before the codec. A codec by frames makes one latent of each frame, so any frames may be
given. A causal codec makes one latent of the first frame and one of every few frames after it, each from all frames up
to its own, so only the first 1 + k ft frames may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from videodiff.data.video.decode import decode, probe, resize


class Known(NamedTuple):
    """Frames of a video that a clip keeps: their numbers in the clip, and uint8 `k h w c`."""

    numbers: tuple[int, ...]
    frames: np.ndarray


NONE = Known((), np.empty(0))


def first_frames(codec: Any, frames: int) -> list[int]:
    """Return how many first frames of a clip may be given; at least one frame is left to make."""
    return list(range(1, frames, codec.compression[0] if codec.causal else 1))


def usual_given(codec: Any, frames: int, wanted: int = 3) -> int:
    """Return the number of first frames nearest to the wanted one that may be given, 0 where none may."""
    return min(first_frames(codec, frames), key=lambda number: (abs(number - wanted), number), default=0)


def check_given(name: str, given: int, codec: Any, frames: int) -> None:
    """Raise where so many first frames of a clip cannot be given; `name` is the setting that asks for it."""
    if given not in first_frames(codec, frames):
        raise ValueError(f"{name}: found {given}, expected {fitting(codec, frames)}")


def find_known(known: Sequence[int], codec: Any, frames: int) -> tuple[int, ...]:
    """Return the frames that are to be given, ascending, negative numbers counted from the end; raise where they do
    not fit.
    """
    found = sorted({number + frames if number < 0 else number for number in known})
    if not found or found[0] < 0 or found[-1] >= frames:
        raise ValueError(f"known: found {list(known)}, expected frame numbers from {-frames} to {frames - 1}")
    if len(found) == frames:
        raise ValueError(f"known: found all {frames} frames of the clip, expected at least one to be made")
    if codec.causal and (found != list(range(len(found))) or len(found) not in first_frames(codec, frames)):
        raise ValueError(f"known: found {list(known)}, expected {fitting(codec, frames)}")
    return tuple(found)


def known_latents(codec: Any, known: Sequence[int]) -> list[int]:
    """Return the latents that are known by these frames, which fit."""
    return list(range(codec.latent_frames(len(known)))) if codec.causal else list(known)


def fitting(codec: Any, frames: int) -> str:
    """Say how many first frames fit, and why."""
    fits = first_frames(codec, frames)
    if not fits:
        return f"none: a clip of {frames} frame has none besides"
    if not codec.causal:
        return f"1 to {fits[-1]} of the clip's {frames} frames"
    shown = [str(number) for number in fits]
    listed = ", ".join([*shown[:3], *(["..."] if len(shown) > 4 else []), *shown[3:][-1:]])
    return (
        f"the first {listed} of the clip's {frames} frames: the codec {codec.name} makes one latent of the first "
        f"frame and one of every {codec.compression[0]} after it"
    )


def read_known(
    name: str, video: bytes, known: Sequence[int], codec: Any, shape: tuple[int, int, int], fps: float
) -> Known:
    """Return the frames of a video that a clip of this shape `t h w` and rate keeps: what it shows at their times.

    `name` is the file, for messages.
    """
    numbers, info = find_known(known, codec, shape[0]), probe(video)
    shown = [round(number * info.fps / fps) for number in numbers]
    if len(set(shown)) < len(shown):
        raise ValueError(
            f"given: {name} has {info.fps:g} frames a second, expected at least {fps:g}, the rate of this clip "
            f"(fps={info.fps:g} samples at the rate of the video)"
        )
    if shown[-1] >= info.frames:
        raise ValueError(
            f"given: {name} has {info.frames} frames, expected at least {shown[-1] + 1} for "
            f"known={list(known)} of {shape[0]} frames at {fps:g} a second"
        )
    return Known(numbers, resize(decode(video, shown), *shape[1:]))
