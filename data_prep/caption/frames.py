"""What a captioner looks at: some frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from videodiff.data.video.decode import DecodeError, decode, probe

QUALITY = 90


def read_frames(path: Path, count: int, side: int) -> np.ndarray:
    """Return at most `count` frames of a clip, evenly spread, uint8 `t h w c`, with a short side of at most `side`.

    A clip that cannot be read is a DecodeError.
    """
    try:
        video = path.read_bytes()
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}") from error
    info = probe(video)
    frames = decode(video, spread(info.frames, count))
    scale = side / min(info.height, info.width)
    if scale >= 1:
        return frames
    size = round(info.width * scale), round(info.height * scale)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def spread(frames: int, count: int) -> Sequence[int]:
    """Return the middles of `count` equal parts of so many frames; each frame once where there are fewer."""
    count = min(frames, count)
    return [(2 * place + 1) * frames // (2 * count) for place in range(count)]


def to_jpeg(frame: np.ndarray) -> bytes:
    """Return uint8 `h w c` in RGB as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
