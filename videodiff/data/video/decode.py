"""One function reads frames out of a video in memory, those that a decoder shows which begins at the first one.

PyAV carries its own ffmpeg. Used with care it is also the fastest here: the times of all pictures are read from the
headers, decoding begins at the keyframe before the frames asked for, and opening decodes nothing. Where times do not
tell frames apart all are decoded. bench/decoders.py measures it beside decord.

Frames that come unevenly are laid on a clock, see `timing`: the number of a frame is that of its tick then.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from videodiff.data.video.fields import Fields, check_whole
from videodiff.data.video.info import (
    QUICK,
    DecodeError,
    VideoInfo,
    best_stream,
    decoder_of,
    open_video,
    stated_rate,
)
from videodiff.data.video.screen import Screen
from videodiff.data.video.timing import JOINED, MICROSECOND, begins_anew, clock_ticks
from videodiff.words import count_text

# A decoder takes a video and frame indices, and yields index and image, uint8 `h w c`; DecodeError if one is missing.
FindFrames = Callable[[bytes, Sequence[int]], Iterator[tuple[int, np.ndarray]]]


def probe(video: bytes) -> VideoInfo:
    """Return size, frames and rate as the video states them; the size is the size as shown.

    Its frames are counted, as a header may promise more than is there: by their times, or where these do not tell which
    ones are shown, by decoding.
    """
    pictures, ticks, fps = timed(video)
    frames, width, height = 0, 0, 0
    told = bool(pictures) and not misses_beginning(pictures)
    with opened(video) as (container, stream, screen):
        for frames, frame in enumerate(decoded(container.demux(stream), stream), 1):
            if frames == 1:
                width, height = screen.measure(frame)
            if told:
                frames = sum(picture.shown for picture in pictures) if ticks is None else len(ticks)
                break
    if not (frames and fps and width and height):
        raise DecodeError(
            f"found {count_text(frames, 'frame')} of {width} x {height} at {fps} fps, expected at least one frame"
        )
    return VideoInfo(width, height, frames, fps, frames / fps)


def decode(video: bytes, indices: Sequence[int], find: FindFrames | None = None) -> np.ndarray:
    """Return the frames at these indices, in this order: uint8 `t h w c`, RGB; DecodeError if one cannot be decoded.

    They are as a player shows them, see `Screen`. Only the groups of pictures are decoded that hold a frame asked for.
    find: one of `decoders.DECODERS`, None for `find_frames`.
    """
    out = None
    for number, image in (find or find_frames)(video, indices):
        out = np.empty((len(indices), *image.shape), dtype=np.uint8) if out is None else out
        for place in np.flatnonzero(np.equal(indices, number)):
            out[place] = image
    return out


def decode_into(out: np.ndarray, video: bytes, indices: Sequence[int], find: FindFrames | None = None) -> None:
    """Fill uint8 `t h w c` with these frames, scaled and cropped to its size, as `decode` and `resize` give them."""
    for number, image in (find or find_frames)(video, indices):
        fitted = resize(image[None], *out.shape[1:3])[0]
        for place in np.flatnonzero(np.equal(indices, number)):
            out[place] = fitted


def find_frames(video: bytes, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield index and image, uint8 `h w c`, of each of these frames.

    One that comes twice is the second time as it shall be.
    """
    numbers, count = ascending_numbers(indices), 0
    # A failure of the fast path may be no fault of the video: decode from the start then.
    with contextlib.suppress(DecodeError):
        for count, image in enumerate(seek_frames(video, numbers), 1):
            yield numbers[count - 1], image
    if count < len(numbers):
        yield from decode_from_start(video, numbers)


def ascending_numbers(indices: Sequence[int]) -> list[int]:
    """Return the distinct frame numbers in ascending order; ValueError if there is none, or one below 0."""
    numbers = sorted({int(index) for index in indices})
    if not numbers or numbers[0] < 0:
        raise ValueError(f"indices: found {list(indices)}, expected frame numbers from 0")
    return numbers


class Picture(NamedTuple):
    """A coded picture: its times of display and decoding, whether it is a keyframe, whether it is shown, how long."""

    pts: int
    dts: int
    key: bool
    shown: bool
    stays: int


# Decoders that can skip single pictures.
SKIPPING = {"h264", "hevc"}
# One packet is one picture, and keyframes are marked as such.
INDEXED = {"h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9"}


def timed(video: bytes, quick: bool = False) -> tuple[list[Picture] | None, np.ndarray | None, float]:
    """Return pictures, ticks and rate of a video, see `lay_pictures`; pictures are None where times do not tell them.

    A packet of some codecs (VP8, MPEG-4) may hold several pictures or none that is shown, so that their pictures are
    those that the decoder gives. If their packets come evenly at the stated rate, and the last one stays no longer than
    the others, nothing is decoded. quick: see `opened`.
    """
    with opened(video, quick) as (container, stream, _):
        packets = coded_pictures(container, stream)
        if is_joined(packets, stream):
            return None, None, lay([], stream)[1]
        if pictures := pictures_in(packets, stream):
            return pictures, *lay_pictures(pictures, stream)
        ticks, rate = lay([(packet.pts, packet.duration or 0) for packet in packets if packet.pts is not None], stream)
        if ticks is None and rate == lay([], stream)[1]:
            return None, None, rate
    with opened(video) as (container, stream, _):
        pictures = decoded_pictures(container, stream)
        return pictures, *lay_pictures(pictures, stream)


def decoded_pictures(container: av.container.InputContainer, stream: av.VideoStream) -> list[Picture] | None:
    """Return the pictures that the decoder gives; None if one is damaged or has no time, or times do not ascend."""
    try:
        shown = [(frame.pts, frame.duration or 0) for frame in decoded(container.demux(stream), stream)]
    except (DecodeError, av.FFmpegError):
        return None
    times = [pts for pts, _ in shown]
    if None in times or any(one >= other for one, other in itertools.pairwise(times)):
        return None
    return [Picture(pts, pts, True, True, stays) for pts, stays in shown]


def read_index(container: av.container.InputContainer, stream: av.VideoStream) -> list[Picture] | None:
    """Return the pictures in the order of decoding; None if times do not identify them."""
    packets = coded_pictures(container, stream)
    return None if is_joined(packets, stream) else pictures_in(packets, stream)


def coded_pictures(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.Packet]:
    """Return the packets of a stream, of two that hold the fields of one picture the first."""
    second = Fields(stream)
    return [packet for packet in container.demux(stream) if packet.size and not second(packet)]


def pictures_in(packets: list[av.Packet], stream: av.VideoStream) -> list[Picture] | None:
    """Return the pictures of these packets in the order of decoding; None if times do not identify them."""
    times = {packet.pts for packet in packets}
    seekable = stream.codec_context.name in INDEXED and decoder_of(stream) is stream.codec_context
    if not seekable or None in times or len(times) < len(packets):
        return None
    return [
        Picture(packet.pts, decoding_time(packet), packet.is_keyframe, not packet.is_discard, packet.duration or 0)
        for packet in packets
    ]


def is_joined(packets: list[av.Packet], stream: av.VideoStream) -> bool:
    """Return whether these packets are of several recordings, one behind the other, each with times of its own."""
    unit, name = stream.time_base * MICROSECOND, stream.container.format.name
    # Most clips are in other containers, and the loader opens thousands a second.
    if name not in JOINED:
        return False
    times = [int(packet.dts * unit) for packet in packets if packet.dts is not None]
    return any(begins_anew(name, before, now) for before, now in itertools.pairwise(times))


def lay_pictures(pictures: list[Picture] | None, stream: av.VideoStream) -> tuple[np.ndarray | None, float]:
    """Return the picture that each tick of the clock shows (None if times are even), and the rate per second."""
    known = pictures if pictures and not misses_beginning(pictures) else ()
    return lay([(picture.pts, picture.stays) for picture in known if picture.shown], stream)


def lay(shown: list[tuple[int, int]], stream: av.VideoStream) -> tuple[np.ndarray | None, float]:
    """Return ticks and rate as `lay_pictures`, from when each picture comes to be shown and for how long.

    Without any it is the stated rate.
    """
    rate = stated_rate(stream)
    if not shown or not rate:
        return None, float(rate or 0)
    unit, shown = float(stream.time_base) * MICROSECOND, sorted(shown)
    times = np.round(np.array([pts for pts, _ in shown]) * unit).astype(np.int64)
    ticks, rate = clock_ticks(times, shown[-1][1] * unit, Fraction(rate))
    return ticks, float(rate)


def misses_beginning(pictures: list[Picture]) -> bool:
    """Return whether a file begins inside a group of pictures: it then shows fewer pictures than it holds."""
    return not pictures[0].key or pictures[0].pts > min(picture.pts for picture in pictures)


def decoding_time(packet: av.Packet) -> int | None:
    """Return when a packet is decoded, None if it does not say."""
    return packet.pts if packet.dts is None else packet.dts


def seek_frames(video: bytes, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames at these ascending indices; seek by time to the last keyframe before each.

    It ends where one is missing, or times do not tell. Pictures that lead a keyframe are shown before it, and so belong
    to the keyframe before.
    """
    with opened(video, quick=True) as (container, stream, screen):
        pictures = read_index(container, stream)
        if not pictures or misses_beginning(pictures):
            return
        shown = sorted(picture.pts for picture in pictures if picture.shown)
        ticks, _ = lay_pictures(pictures, stream)
        shown = shown if ticks is None else [shown[place] for place in ticks]
        wanted = deque(shown[number] for number in numbers if number < len(shown))
        only = set(wanted) if stream.codec_context.name in SKIPPING else None
        keys = sorted((picture.pts, picture.dts) for picture in pictures if picture.key)
        ascending = all(one.pts < other.pts for one, other in itertools.pairwise(pictures))
        while wanted:
            number = bisect.bisect_right(keys, wanted[0], key=lambda key: key[0]) - 1
            after = keys[number + 1][0] if number + 1 < len(keys) else math.inf
            for frame in decoded(packets_from(container, stream, *keys[number]), stream, only):
                # If times do not ascend in the order of display, they are times of decoding.
                if frame.pts is None or frame.pts > wanted[0] or (ascending and stream.codec_context.has_b_frames):
                    return
                # Of two fields the second one must not be skipped.
                if frame.interlaced_frame:
                    return
                if frame.pts == wanted[0]:
                    image = screen.show(frame)
                    # Several ticks show a frame that stays on the screen.
                    while wanted and frame.pts == wanted[0]:
                        yield image
                        wanted.popleft()
                # A later keyframe leads to the next frame: seek again.
                if not wanted or wanted[0] >= after:
                    break
            else:
                return


def packets_from(
    container: av.container.InputContainer, stream: av.VideoStream, pts: int, dts: int
) -> Iterator[av.Packet]:
    """Yield the packets from the keyframe with these times, or from an earlier keyframe."""
    # MP4 seeks by the time of display; its time of decoding would lead to the keyframe before. Other containers seek
    # by the time of decoding.
    for start in (pts, min(pts, dts)):
        container.seek(start, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if decoding_time(first) is None or decoding_time(first) <= dts:
            break
    yield first
    yield from packets


def decode_from_start(video: bytes, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode all frames up to the last requested one: this defines what a frame index means, for every file."""
    count = 0
    _, ticks, _ = timed(video, quick=True)
    if ticks is not None and numbers[-1] >= len(ticks):
        raise DecodeError(f"found {count_text(len(ticks), 'frame')}, expected frame {numbers[-1]}")
    left = deque((number, number if ticks is None else int(ticks[number])) for number in numbers)
    with opened(video) as (container, stream, screen):
        for count, frame in enumerate(decoded(container.demux(stream), stream), 1):
            image = screen.show(frame) if left[0][1] == count - 1 else None
            while left and left[0][1] == count - 1:
                yield left.popleft()[0], image
            if not left:
                return
    raise DecodeError(f"found {count_text(count, 'frame')}, expected frame {numbers[-1]}")


def read_frames(video: bytes) -> Iterator[av.VideoFrame]:
    """Yield every frame in the order of display; DecodeError if one is damaged or there is none."""
    frame = None
    with opened(video) as (container, stream, screen):
        for frame in decoded(container.demux(stream), stream):
            yield screen.complete(frame)
    if frame is None:
        raise DecodeError("found no frame, expected at least one")


@contextlib.contextmanager
def opened(video: bytes, quick: bool = False) -> Iterator[tuple[av.container.InputContainer, av.VideoStream, Screen]]:
    """Open a video: yield container, best stream with one thread, and screen; errors of ffmpeg become DecodeError.

    `quick`: without decoding, after which the stream's format is not known yet.
    """
    try:
        with open_video(video, **(QUICK if quick else {})) as container:
            # With several streams ffmpeg must look at their pictures to find the best.
            if quick and len(container.streams.video) > 1:
                with opened(video) as found:
                    yield found
                return
            stream = best_stream(container)
            yield container, stream, Screen(video, container, stream)
    except av.FFmpegError as error:
        raise DecodeError(f"cannot be decoded: {error.strerror}") from error


def decoded(
    packets: Iterable[av.Packet], stream: av.VideoStream, only: Collection[int] | None = None
) -> Iterator[av.VideoFrame]:
    """Yield the frames of these packets; DecodeError if one is damaged or a single field.

    With `only`, times of display, other pictures are left out, but for those that these may refer to.
    """
    decoder = decoder_of(stream)
    for packet in packets:
        if only is not None:
            decoder.skip_frame = "DEFAULT" if packet.pts in only else "NONREF"
        for frame in decoder.decode(packet):
            if frame.is_corrupt:
                raise DecodeError(f"the frame at {frame.time} s is damaged")
            check_whole(frame, decoder.name)
            yield frame


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 `t h w c` until it covers height x width (bilinear, antialiased), then crop the centre."""
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    scale = max(height / h, width / w)
    size = max(height, round(h * scale)), max(width, round(w * scale))
    # Here, because torch takes seconds to import, and most of what reads video does not scale it.
    import torch

    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if size != (h, w):
        video = torch.nn.functional.interpolate(video, size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    video = video[:, :, top : top + height, left : left + width]
    return video.permute(0, 2, 3, 1).contiguous().numpy()
