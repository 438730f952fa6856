"""Which frames of a clip may be given, and which latents are then known: one rule for all sampling.

Frame indices count in the clip, before the codec. A codec that works frame by frame makes one latent per frame, so any
frames may be given. A causal codec makes one latent from the first frame and one from each ft frames after it, and each
latent depends on all frames before it, so only the first 1 + k ft frames may be given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from videodiff.words import count_text


def first_frames(codec: Any, frames: int) -> range:
    """Return the allowed numbers of given first frames; at least one frame is left to sample."""
    return range(1, frames, codec.compression[0] if codec.causal else 1)


def usual_given(codec: Any, frames: int, denoiser: Any, wanted: int = 3) -> int:
    """Return the allowed number of given first frames nearest to the wanted one, 0 if none is allowed.

    Numbers that fill whole patches of the network go before others: it is told one level for each patch.
    """
    patch = patch_of(denoiser)

    def farness(number: int) -> tuple[bool, int, int]:
        return len(known_latents(codec, range(number))) % patch > 0, abs(number - wanted), number

    # Beyond these the nearest one does not lie, however long a clip is asked for.
    near = wanted + 1 + patch * (codec.compression[0] if codec.causal else 1)
    return min(first_frames(codec, min(frames, near)), key=farness, default=0)


def check_given(name: str, given: int, codec: Any, frames: int) -> None:
    """Raise if `given` first frames of a clip cannot be given; `name` is the setting with this number."""
    if given not in first_frames(codec, frames):
        raise ValueError(f"{name}: found {given}, expected {fitting(codec, frames)}")


def find_known(known: Sequence[int], codec: Any, frames: int) -> tuple[int, ...]:
    """Return the ascending indices of the given frames; negative ones count from the end. Raise if they do not fit."""
    found = sorted({number + frames if number < 0 else number for number in known})
    if not found or found[0] < 0 or found[-1] >= frames:
        raise ValueError(f"known: found {list(known)}, expected frame numbers from {-frames} to {frames - 1}")
    if len(found) == frames:
        raise ValueError(
            f"known: found all {count_text(frames, 'frame')} of the clip, expected at least one that is sampled"
        )
    if codec.causal and (found != list(range(len(found))) or len(found) not in first_frames(codec, frames)):
        raise ValueError(f"known: found {list(known)}, expected {fitting(codec, frames)}")
    return tuple(found)


def known_latents(codec: Any, known: Sequence[int]) -> list[int]:
    """Return the indices of the latents that these frames determine; the frames must fit."""
    return list(range(codec.latent_frames(len(known)))) if codec.causal else list(known)


def patch_of(denoiser: Any) -> int:
    """Return how many latents in time a patch of the network has; a network of the user's own may have no patches."""
    return getattr(denoiser, "patch", (1,))[0]


def mixed(clean: Mapping[str, Sequence[int]], denoiser: Any) -> list[str]:
    """Return a line with the settings by which latents of different noise levels lie in one patch, if there are any.

    clean: the latents that are known, or have less noise than the others, by the setting that says so.
    """
    patch = patch_of(denoiser)
    found = {name: Counter(number // patch for number in numbers) for name, numbers in clean.items()}
    names = [name for name, patches in found.items() if any(count < patch for count in patches.values())]
    said = f"frames of different noise levels share patches of {patch} (model.patch[0]): the network is told their mean"
    return [f"{', '.join(names)}: {said}"] if names else []


def fitting(codec: Any, frames: int) -> str:
    """Return the text that says how many first frames may be given, and why."""
    fits = first_frames(codec, frames)
    if not fits:
        return f"none: a clip of {frames} frame has no other frame"
    if not codec.causal:
        return f"1 to {fits[-1]} of the clip's {count_text(frames, 'frame')}"
    listed = ", ".join(map(str, [*fits[:3], *(["..."] if len(fits) > 4 else []), *fits[3:][-1:]]))
    return (
        f"the first {listed} of the clip's {count_text(frames, 'frame')}: the codec {codec.name} makes one latent from "
        f"the first frame and one from every {codec.compression[0]} after it"
    )
