"""One function reads frames out of a video in memory, by one of two back-ends.

decord reads canonical clips. PyAV reads all others exactly: those that decord's wheel cannot open (AV1), and those of
which it gives other frames than are shown (open groups of pictures, edit lists). Both carry their own ffmpeg;
torchcodec, as exact as PyAV and no faster here, needs ffmpeg's libraries on the machine.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch  # before decord: the other order freezes DataLoader workers (dmlc/decord#251)

# isort: split
import av
import decord
import numpy as np
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter

from videodiff.data.video import DecodeError, VideoInfo, best_stream

decord.logging.set_level(decord.logging.QUIET)


def probe(video: bytes) -> VideoInfo:
    """Return what a video says of itself; its packets are counted, as a header may promise more than is there."""
    with opened(video) as (container, stream):
        frames = sum(bool(packet.size) and not packet.is_discard for packet in container.demux(stream))
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        width, height = stream.codec_context.width, stream.codec_context.height
    if not (frames and fps and width and height):
        raise DecodeError(f"found {frames} frames of {width} x {height} at {fps} fps, expected at least one frame")
    return VideoInfo(width, height, frames, fps, frames / fps)


def decode(video: bytes, indices: Sequence[int], backend: str = "decord") -> np.ndarray:
    """Return the frames of these numbers, in this order: uint8 `t h w c`, RGB; DecodeError where that cannot be.

    `backend` is decord or pyav; what decord cannot read goes to PyAV. Only the groups of pictures are decoded that hold
    a frame asked for.
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
        # Where `asnumpy` would copy.
        return torch.utils.dlpack.from_dlpack(reader.get_batch(numbers).to_dlpack()).numpy()
    except (decord.DECORDError, RuntimeError):
        return decode_by_pyav(video, numbers)


def decode_into(out: np.ndarray, video: bytes, indices: Sequence[int], backend: str = "decord") -> None:
    """Fill uint8 `t h w c` with these frames, scaled and cropped to its size, as `decode` and `resize` give them."""
    np.copyto(out, resize(decode(video, indices, backend), *out.shape[1:3]))


def backend_for(width: int) -> str:
    """Return the back-end to try first for a canonical clip of this width.

    decord 0.6 copies rows of 24, 48 or 72 pixels with their padding and then refuses the result; at such sizes PyAV is
    the faster one anyway.
    """
    return "pyav" if width < 80 else "decord"


def probe_backend(video: bytes) -> str:
    """Return the back-end to read a video of anybody with: decord where nothing leads it astray, else pyav.

    It shows frames that an edit list hides, and decodes those that lead a keyframe without what they refer to; the
    pictures tell both. A look at a few frames tells the rest: transport streams, ten bits a colour.
    """
    with opened(video) as (container, stream):
        pictures, width = read_index(container, stream), stream.codec_context.width
    if pictures is None or leading(pictures) or not all(picture.shown for picture in pictures):
        return "pyav"
    count = len(pictures)
    numbers = sorted({0, count // 3, 2 * count // 3, count - 1})
    truth = decode_by_pyav(video, numbers)
    try:
        reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
        alike = len(reader) == count and differ(reader.get_batch(numbers).asnumpy(), truth) <= ALIKE
    except (decord.DECORDError, RuntimeError):
        return "pyav"
    return backend_for(width) if alike else "pyav"


# Levels of 255, the mean over a frame: two versions of ffmpeg convert colours with less than 1.
ALIKE = 3.0


def differ(frames: np.ndarray, others: np.ndarray) -> float:
    """Return the mean difference of the two frames that differ most."""
    return float(np.abs(frames.astype(np.int16) - others).mean(axis=(1, 2, 3)).max())


class Picture(NamedTuple):
    """A coded picture: when it is shown and decoded, whether decoding may begin with it, and whether it is shown."""

    pts: int
    dts: int
    key: bool
    shown: bool


# One packet is one picture, and keyframes are marked as such.
INDEXED = {"h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9"}


def read_index(container: av.container.InputContainer, stream: av.VideoStream) -> list[Picture] | None:
    """Return the pictures in the order of decoding; None where times do not name them."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = {packet.pts for packet in packets}
    if stream.codec_context.name not in INDEXED or None in times or len(times) < len(packets):
        return None
    return [Picture(p.pts, p.pts if p.dts is None else p.dts, p.is_keyframe, not p.is_discard) for p in packets]


def leading(pictures: Sequence[Picture]) -> bool:
    """Tell whether a picture is shown before the keyframe that it is decoded after."""
    last = None
    for picture in pictures:
        last = picture if picture.key else last
        if last is None or picture.pts < last.pts:
            return True
    return False


def decode_by_pyav(video: bytes, numbers: Sequence[int]) -> np.ndarray:
    """Return frames found by the times at which they are shown; see `decode`."""
    with opened(video) as (container, stream):
        pictures = read_index(container, stream)
        # A file that begins within a group of pictures shows fewer of them than it holds.
        if pictures and pictures[0].key and pictures[0].pts == min(picture.pts for picture in pictures):
            shown = sorted(picture.pts for picture in pictures if picture.shown)
            if max(numbers) >= len(shown):
                raise DecodeError(f"found {len(shown)} frames, expected frame {max(numbers)}")
            found = seek_frames(container, stream, pictures, sorted({shown[number] for number in numbers}))
            if found is not None:
                return np.stack([found[shown[number]] for number in numbers])
    return decode_from_start(video, numbers)


def seek_frames(
    container: av.container.InputContainer, stream: av.VideoStream, pictures: Sequence[Picture], times: Sequence[int]
) -> dict[int, np.ndarray] | None:
    """Return the frames of these ascending times, each decoded from the last keyframe before it.

    None where one is missing. Pictures that lead a keyframe are shown before it, and so belong to the keyframe before.
    """
    keys, found, wanted = sorted((p.pts, p.dts) for p in pictures if p.key), {}, deque(times)
    reformatter = VideoReformatter()
    while wanted:
        number = bisect.bisect_right(keys, wanted[0], key=lambda key: key[0]) - 1
        after = keys[number + 1][0] if number + 1 < len(keys) else math.inf
        container.seek(min(keys[number]), stream=stream)
        for frame in decoded(container, stream):
            if frame.pts == wanted[0]:
                found[frame.pts] = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                wanted.popleft()
            # A frame is missing, or the next one can be had from a later keyframe.
            if not wanted or frame.pts > wanted[0] or wanted[0] >= after:
                break
        else:
            return None
        if wanted and frame.pts > wanted[0]:
            return None
    return found


def decode_from_start(video: bytes, numbers: Sequence[int]) -> np.ndarray:
    """Decode all frames up to the last one asked for: the meaning of their numbers, whatever the file."""
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
    with opened(video) as (container, stream):
        for frame in decoded(container, stream):
            yield frame
    if frame is None:
        raise DecodeError("found no frame, expected at least one")


@contextlib.contextmanager
def opened(video: bytes) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video and its stream, one thread; what ffmpeg finds wrong with it is a DecodeError."""
    try:
        with av.open(io.BytesIO(video)) as container:
            stream = best_stream(container)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DecodeError(f"cannot be decoded: {error.strerror}") from error


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the frames from here on; DecodeError where one is damaged."""
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise DecodeError(f"the frame at {frame.time} s is damaged")
        yield frame


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
