"""decord reads the frames of a video, where they are known to be the right ones; elsewhere it is refused.

decord 0.6.0 finds a frame by counting pictures from the last keyframe. It misses frames where pictures are shown before
the keyframe that they follow (open groups), where an edit list hides some, where times are those of decoding, and in
containers without an index; it reads no AV1, and knows no rotation, square pixels, transparency or high dynamic range.
Headers and the first picture show all of this but one thing, so a video is judged before decord opens it. If the header
allows pictures out of order and the times show none, a full decode tells whether these are the times of decoding.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence

import av
import numpy as np

from videodiff.data.video.color import BT601, UNSPECIFIED
from videodiff.data.video.decode import (
    Picture,
    ascending_numbers,
    decoded,
    lay_pictures,
    misses_beginning,
    opened,
    read_index,
)
from videodiff.data.video.geometry import UPRIGHT
from videodiff.data.video.info import DecodeError
from videodiff.data.video.screen import Screen, is_plain
from videodiff.words import count_text

CODECS, CONTAINERS, PIXELS = ("h264", "hevc", "vp9"), ("mov,mp4", "matroska"), ("yuv420p", "yuvj420p")


def frames_by_decord(video: bytes, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield index and image, uint8 `h w c`, of each of these frames, as `find_frames` does.

    DecodeError where decord might give another frame than a full decode of the video.
    """
    # decord brings its own ffmpeg; PyAV must be imported first, so that its symbols win.
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    numbers = ascending_numbers(indices)
    with opened(video) as (container, stream, _):
        pictures = read_index(container, stream)
        ticks, _ = lay_pictures(pictures, stream)
    # Opened again, as a stream without a container cannot seek.
    with opened(video) as (container, stream, screen):
        first = next(decoded(container.demux(stream), stream), None)
        if reason := why_not(container, stream, screen, first, pictures):
            raise refusal(reason)
    count = len(pictures) if ticks is None else len(ticks)
    if numbers[-1] >= count:
        raise DecodeError(f"found {count_text(count, 'frame')}, expected frame {numbers[-1]}")
    try:
        reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
        if len(reader) != len(pictures):
            raise refusal(f"it counts {len(reader)} of {count_text(len(pictures), 'picture')}")
        shown = [number if ticks is None else int(ticks[number]) for number in numbers]
        images = reader.get_batch(shown).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise DecodeError(f"decord cannot decode it: {str(error).splitlines()[0][:100]}") from error
    yield from zip(numbers, images, strict=True)


def refusal(reason: str) -> DecodeError:
    """Return the error of a video that decord might misread."""
    return DecodeError(f"decord may give wrong frames of it: {reason}; data.decoder=pyav reads it")


def why_not(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    screen: Screen,
    first: av.VideoFrame | None,
    pictures: list[Picture] | None,
) -> str:
    """Return why decord must not read this video, empty if it may; the container has just decoded its first frame."""
    if stream.codec_context.name not in CODECS:
        return f"its codec is {stream.codec_context.name}, not {' or '.join(CODECS)}"
    if not container.format.name.startswith(CONTAINERS):
        return f"its container is {container.format.name}, which has no index of frames"
    if len(container.streams.video) > 1:
        return "it holds several video streams"
    if not pictures:
        return "the times of its pictures do not tell them apart"
    if not all(picture.shown for picture in pictures) or misses_beginning(pictures):
        return "some of its pictures are not shown, by an edit list or for want of a keyframe"
    if has_open_groups(pictures):
        return "pictures are shown before the keyframe that they follow (open groups)"
    if first is None or first.interlaced_frame:
        return "its frames are woven of two fields"
    matrix = int(first.colorspace)
    screen.complete(first)
    if matrix == UNSPECIFIED and int(first.colorspace) not in BT601:
        return "the matrix of its colours stands in the container alone"
    if first.format.name not in PIXELS or not is_plain(first):
        return f"its pixels are {first.format.name} with transfer {int(first.color_trc)}, not ordinary 8 bit"
    display = screen.display_of(first)
    if display.orientation != UPRIGHT or display.size(first.width, first.height) != (first.width, first.height):
        return "it is shown turned, or its pixels are not square"
    ascending = all(a.pts < b.pts for a, b in itertools.pairwise(pictures))
    if ascending and stream.codec_context.has_b_frames and reorders(container, stream):
        return "its times are those of decoding"
    return ""


def reorders(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Return whether pictures come out of the decoder in another order than that of their times.

    The header may allow pictures to be shown out of order where none is; only a full decode tells.
    """
    container.seek(0)
    times = [frame.pts for frame in decoded(container.demux(stream), stream)]
    return any(a >= b for a, b in itertools.pairwise(times))


def has_open_groups(pictures: Sequence[Picture]) -> bool:
    """Return whether some picture is decoded after a keyframe but shown before it."""
    earliest = float("inf")
    for picture in reversed(pictures):
        if picture.key and picture.pts > earliest:
            return True
        earliest = min(earliest, picture.pts)
    return False
