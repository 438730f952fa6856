"""One function reads frames out of a video in memory: decord first, PyAV for what decord's wheel cannot open (AV1)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch  # before decord: the other order freezes DataLoader workers (dmlc/decord#251)

# isort: split
import av
import decord
import numpy as np
import torch.nn.functional as F

decord.logging.set_level(decord.logging.QUIET)


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


def probe(video: bytes) -> VideoInfo:
    """Return what a video says of itself; its packets are counted, as a header may promise more than is there."""
    try:
        with av.open(io.BytesIO(video)) as container:
            stream = best_stream(container)
            frames = sum(bool(packet.size) and not packet.is_discard for packet in container.demux(stream))
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            width, height = stream.codec_context.width, stream.codec_context.height
    except av.FFmpegError as error:
        raise DecodeError(f"cannot be opened: {error.strerror}") from error
    if not (frames and fps and width and height):
        raise DecodeError(f"found {frames} frames of {width} x {height} at {fps} fps, expected at least one frame")
    return VideoInfo(width, height, frames, fps, frames / fps)


def decode(video: bytes, indices: Sequence[int], backend: str = "decord") -> np.ndarray:
    """Return the frames of these numbers, in this order: uint8 `t h w c`, RGB; DecodeError where that cannot be.

    `backend` is tried first, decord or pyav; what decord cannot read goes to PyAV.
    """
    numbers = [int(index) for index in indices]
    if not numbers or min(numbers) < 0:
        raise ValueError(f"indices: found {numbers}, expected frame numbers from 0")
    if backend == "pyav":
        return decode_by_pyav(video, numbers)
    try:
        reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
    except (decord.DECORDError, RuntimeError):
        return decode_by_pyav(video, numbers)
    if max(numbers) >= len(reader):
        raise DecodeError(f"found {len(reader)} frames, expected frame {max(numbers)}")
    try:
        return reader.get_batch(numbers).asnumpy()
    except (decord.DECORDError, RuntimeError):
        return decode_by_pyav(video, numbers)


def backend_for(width: int) -> str:
    """Return the back-end to try first for a video of this width.

    decord 0.6 copies rows of 24, 48 or 72 pixels with their padding and then refuses the result; at such sizes PyAV is
    the faster one anyway.
    """
    return "pyav" if width < 80 else "decord"


def decode_by_pyav(video: bytes, numbers: Sequence[int]) -> np.ndarray:
    """Decode from the start to the last frame asked for: slower than `decode`, and reads more codecs."""
    wanted, found = set(numbers), {}
    for number, frame in enumerate(read_frames(video)):
        if number in wanted:
            found[number] = frame.to_ndarray(format="rgb24", threads=1)
        if len(found) == len(wanted):
            return np.stack([found[number] for number in numbers])
    raise DecodeError(f"found {number + 1} frames, expected frame {max(numbers)}")


def read_frames(video: bytes) -> Iterator[av.VideoFrame]:
    """Yield every frame in the order of display; DecodeError where one is damaged or there is none."""
    frame = None
    try:
        with av.open(io.BytesIO(video)) as container:
            stream = best_stream(container)
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise DecodeError(f"the frame at {frame.time} s is damaged")
                yield frame
    except av.FFmpegError as error:
        raise DecodeError(f"cannot be decoded: {error.strerror}") from error
    if frame is None:
        raise DecodeError("found no frame, expected at least one")


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream that decord picks too: a file may hold several."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise DecodeError("found no video stream that can be decoded, expected one")
    return stream


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 `t h w c` until it covers height x width (bilinear, antialiased), then crop the centre."""
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    scale = max(height / h, width / w)
    size = max(height, round(h * scale)), max(width, round(w * scale))
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if size != (h, w):
        video = F.interpolate(video, size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    video = video[:, :, top : top + height, left : left + width]
    return video.permute(0, 2, 3, 1).contiguous().numpy()
