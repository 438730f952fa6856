"""What a video is, without torch: data preparation starts many processes, which import little."""

from __future__ import annotations

from dataclasses import dataclass

import av


class DecodeError(ValueError):
    """A video that cannot be read."""


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels, number of frames, frames a second (mean), seconds."""

    width: int
    height: int
    frames: int
    fps: float
    duration: float


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream that ffmpeg finds best: a file may hold several."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise DecodeError("found no video stream that can be decoded, expected one")
    return stream
