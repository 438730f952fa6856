"""The decoders that a configuration may choose by name; each yields frames of a video by index, or refuses."""

from __future__ import annotations

from videodiff.data.video.by_decord import frames_by_decord
from videodiff.data.video.decode import FindFrames, find_frames

DECODERS: dict[str, FindFrames] = {"pyav": find_frames, "decord": frames_by_decord}


def decoder_named(name: str) -> FindFrames:
    """Return the decoder of this name."""
    if name not in DECODERS:
        raise ValueError(f"decoder: found {name!r}, expected one of {', '.join(DECODERS)}")
    return DECODERS[name]
