"""One video on its way into a shard: read it in full, keep it where it is fit for training, else encode it again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av
import decord
import numpy as np
from av.video.reformatter import VideoReformatter

from data_prep.cut.clips import make_clips
from data_prep.cut.encode import DEINTERLACE, EncodePolicy
from data_prep.cut.spans import Clock, Span, read_timeline, shortfall
from data_prep.score.interlaced import COMBED, Combs
from videodiff.data.video.decode import decoded, opened, probe, read_frames
from videodiff.data.video.fields import Fields
from videodiff.data.video.geometry import UPRIGHT, Display
from videodiff.data.video.info import DecodeError, VideoInfo, best_stream, open_video, stated_rate
from videodiff.data.video.screen import color_notes, gamut_of, orientation, transfer_of
from videodiff.data.video.timing import MICROSECOND, clock_ticks
from videodiff.words import count_text

decord.logging.set_level(decord.logging.QUIET)

# How many times a second a few frames in a row are searched for combs.
COMBS_FPS = 2.0
# If the pixels of two decoders differ by more than this on average (0 to 255), they show different frames.
SAME_FRAME = 2.0


@dataclass(frozen=True)
class FitPolicy:
    """What every clip is made fit for.

    H.264 in mp4, yuv420p, evenly timed and at most `short_side` pixels high or wide stays as it is; the rest is encoded
    again with `crf`. hdr: a picture of high dynamic range is brought into the range of ordinary video (`tonemap`), or
    its clip is rejected (`reject`). deinterlace: see `EncodePolicy`.
    """

    short_side: int = 720
    crf: int = 18
    hdr: str = "tonemap"
    deinterlace: str = "off"

    def __post_init__(self) -> None:
        if self.short_side < 2 or not 0 <= self.crf <= 51:
            raise ValueError(f"pack: found short_side={self.short_side} crf={self.crf}, expected at least 2, 0 to 51")
        if self.hdr not in ("tonemap", "reject"):
            raise ValueError(f"pack: found hdr={self.hdr}, expected tonemap or reject")
        if self.deinterlace not in DEINTERLACE:
            raise ValueError(f"pack: found deinterlace={self.deinterlace}, expected one of {', '.join(DEINTERLACE)}")

    @property
    def encode(self) -> EncodePolicy:
        """The settings for clips that are encoded again."""
        return EncodePolicy(self.short_side, crf=self.crf, deinterlace=self.deinterlace)


@dataclass(frozen=True)
class Header:
    """What the container says: size as coded and as shown, frames and those it hides, which of them are keyframes.

    ticks: which frame each tick of a clock of `fps` shows, None where they come evenly.
    """

    container: str
    codec: str
    pixels: str
    coded: tuple[int, int]
    shown: tuple[int, int]
    fps: Fraction
    frames: int
    hidden: int
    keyframes: tuple[int, ...]
    ticks: np.ndarray | None


class Fit(NamedTuple):
    """A video that decord and PyAV decode alike, and why it was encoded again (empty: it was not)."""

    video: bytes
    info: VideoInfo
    reason: str
    deinterlaced: bool = False


def fit_video(video: bytes, policy: FitPolicy) -> Fit:
    """Make a video fit for training; DecodeError where any of its frames is missing or damaged."""
    header = read_header(video)
    reason = unfit(header, policy) or differs(video, header, policy.deinterlace == "auto")
    if not reason:
        fps = float(header.fps)
        return Fit(video, VideoInfo(*header.coded, header.frames, fps, header.frames / fps), "")
    timeline = read_timeline(video)
    span = Span(max(int(timeline.times[0]), 0) / MICROSECOND, timeline.end / MICROSECOND)
    ((_, clip),) = make_clips(video, [span], policy.encode, crop=False, scored=False)
    if isinstance(clip, DecodeError):
        raise clip
    if clip.info.frames != len(clip.times):
        raise DecodeError(f"found {count_text(clip.info.frames, 'frame')} that decode, expected {len(clip.times)}")
    return Fit(clip.video, probe(clip.video), reason, clip.deinterlaced)


class FirstFrame(NamedTuple):
    """How the first frame of a video is shown: width and height, and its `color_notes`."""

    size: tuple[int, int]
    notes: dict[str, str]


def first_frame(video: bytes) -> FirstFrame:
    """Decode the first frame of a video."""
    with opened(video) as (container, stream, screen):
        for frame in decoded(container.demux(stream), stream):
            return FirstFrame(screen.measure(frame), color_notes(frame))
    raise DecodeError("found no frame, expected at least one")


def read_header(video: bytes) -> Header:
    """Read packets without decoding them."""
    try:
        with open_video(video) as container:
            stream = best_stream(container)
            context, promised, clock = stream.codec_context, stream.frames, Clock(container, stream)
            packets, second = [packet for packet in container.demux(stream) if packet.size], Fields(stream)
            early = shortfall(stream, packets) if len(packets) < promised else ""
            found, packets = len(packets), [packet for packet in packets if not second(packet)]
            rate, ratio = stated_rate(stream), stream.sample_aspect_ratio or 1
            timed = [packet for packet in packets if packet.pts is not None and not packet.is_discard]
            times = np.sort(np.array([clock(packet.pts) for packet in timed], np.int64))
            stays = max(((packet.pts, packet.duration or 0) for packet in timed), default=(0, 0))[1]
            keys = [clock(packet.pts) for packet in packets if packet.is_keyframe and packet.pts is not None]
            hidden, name = sum(packet.is_discard for packet in packets), container.format.name
            coded = context.width, context.height
            pixels, codec = context.pix_fmt or "unknown", context.codec.canonical_name
    except av.FFmpegError as error:
        raise DecodeError(f"cannot be opened: {error.strerror}") from error
    if early:
        raise DecodeError(
            f"found {count_text(found, 'frame')}, expected {promised} as in its header: cut short, {early}"
        )
    if not all(coded):
        raise DecodeError(f"found a size of {coded[0]} x {coded[1]} pixels, expected a picture")
    if len(packets) == hidden or not rate:
        raise DecodeError(f"found {count_text(len(packets) - hidden, 'frame')} at {rate} fps, expected at least one")
    frames, ticks = len(packets) - hidden, None
    if len(times) == frames:
        ticks, rate = clock_ticks(times, float(stays * clock.unit), Fraction(rate))
    shown, keyframes = Display(Fraction(ratio)).size(*coded), tuple(np.searchsorted(times, keys).tolist())
    return Header(name, codec, pixels, coded, shown, Fraction(rate), frames, hidden, keyframes, ticks)


def unfit(header: Header, policy: FitPolicy) -> str:
    """Return why a video cannot stay as it is, by its header; empty where it may."""
    width, height = header.coded
    reasons = {
        f"codec {header.codec}": header.codec != "h264",
        f"pixels {header.pixels}": header.pixels != "yuv420p",
        f"container {header.container.split(',')[0]}": "mp4" not in header.container,
        f"odd size {width}x{height}": width % 2 or height % 2,
        f"pixels not square, shown as {header.shown[0]}x{header.shown[1]}": header.shown != header.coded,
        f"size {width}x{height}": min(width, height) > policy.short_side,
        count_text(header.hidden, "hidden frame"): header.hidden,
        "uneven frame times": header.ticks is not None,
        "deinterlaced": policy.deinterlace == "on",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def differs(video: bytes, header: Header, combs_wanted: bool = False) -> str:
    """Decode all of a video with PyAV and compare some frames with decord's; return what differs, empty if nothing.

    A missing or damaged frame is a DecodeError. combs_wanted: interlaced frames are reported too. In open groups of
    pictures decord misreads the frames before the keyframe that it seeks to. With one keyframe it never seeks, so the
    comparison is left out.
    """
    later = [number for number in header.keyframes if 0 < number < header.frames]
    middle = later[len(later) // 2] if later else 0
    checked = sorted({0, middle - 1, middle, header.frames - 1}) if later else []
    frames, combs, reformatter, every = [], Combs(), VideoReformatter(), max(1, round(header.fps / COMBS_FPS))
    for number, frame in enumerate(every_frame(video, header)):
        if combs_wanted:
            if number % every == 0:
                combs.begin()
            combs.add(frame, reformatter)
        if (turned := orientation(frame)) != UPRIGHT:
            return str(turned)
        if transfer := transfer_of(frame):
            return f"high dynamic range ({transfer})"
        if gamut := gamut_of(frame):
            return f"wide gamut ({gamut})"
        if (frame.width, frame.height) != header.coded:
            return f"frames of {header.coded[0]}x{header.coded[1]} and {frame.width}x{frame.height}"
        if number in checked:
            frames.append(frame.to_ndarray(format="rgb24", threads=1))
    if combs.share() > COMBED:
        return "interlaced"
    if not checked:
        return ""
    try:
        reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
        if len(reader) != header.frames:
            return f"decord finds {len(reader)} of {count_text(header.frames, 'frame')}"
        found = reader.get_batch(checked).asnumpy()
    except (decord.DECORDError, RuntimeError):
        return "decord cannot read it"
    if found.shape[1:3] != frames[0].shape[:2]:
        return "decord finds another size"
    error = np.abs(found.astype(np.int16) - np.stack(frames)).mean(axis=(1, 2, 3)).max()
    return f"decord is off by {error:.1f} levels" if error > SAME_FRAME else ""


def every_frame(video: bytes, header: Header) -> Iterator[av.VideoFrame]:
    """Yield the frames that the header promises; it is a DecodeError if they are fewer or more."""
    count = 0
    for frame in read_frames(video):
        yield frame
        count += 1
    if count != header.frames:
        raise DecodeError(f"found {count_text(count, 'frame')} that decode, expected {header.frames}")
