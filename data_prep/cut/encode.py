"""Encode: cut, crop, turn, scale and time the frames of a clip as the encode policy says, and make an mp4 of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorRange

from videodiff.data.video.color import BT601
from videodiff.data.video.encode import CODECS, LEAST_FPS, MOST_FPS, Encoder
from videodiff.data.video.geometry import Display, Orientation, even_size
from videodiff.data.video.screen import is_clear, is_plain, rgb_format, to_standard
from videodiff.data.video.timing import (
    FASTEST_CLOCK,
    MICROSECOND,
    PAUSE,
    SLOWEST_CLOCK,
    STRETCH,
    even_rate,
    is_even,
    lay,
    usual_rate,
)

# Which clips are deinterlaced: those in which combs are found, none, or all.
DEINTERLACE = ("auto", "off", "on")
# Tried in this order where hardware is wanted.
HARDWARE_FIRST = ("h264_nvenc", "libx264")
# The slowest constant frame rate that mp4 can state, in frames a second.
SLOWEST_EVEN = Fraction(1, 1000)


@dataclass(frozen=True)
class EncodePolicy:
    """How every clip is encoded: H.264, yuv420p, closed GOP of 12, index in front, one stream, constant frame rate.

    short_side: pixels, larger clips are scaled down to it, none is scaled up; fps: faster sources lose frames until
    they are no faster, slower ones keep their rate; crf, preset, codec: see `videodiff.data.video.encode`, or `auto`
    for the hardware's encoder where there is one that works. Only libx264 gives the same bytes on every machine.
    deinterlace: `auto` for the clips in which combs are found, `off` for none, `on` for all; of two fields one
    picture is made.
    """

    short_side: int = 256
    fps: float | None = None
    crf: int = 18
    preset: str = "veryfast"
    codec: str = "libx264"
    deinterlace: str = "off"

    def __post_init__(self) -> None:
        rate = self.fps is None or LEAST_FPS <= self.fps <= MOST_FPS
        if self.short_side < 2 or not 0 <= self.crf <= 51 or not rate:
            raise ValueError(
                f"encode: found short_side={self.short_side} crf={self.crf} fps={self.fps}, expected at least 2, 0 to "
                f"51, {LEAST_FPS} to {MOST_FPS} or null"
            )
        if self.codec not in (*CODECS, "auto"):
            raise ValueError(f"encode.codec: found {self.codec!r}, expected one of {', '.join(CODECS)}, auto")
        if self.deinterlace not in DEINTERLACE:
            raise ValueError(
                f"encode.deinterlace: found {self.deinterlace!r}, expected one of {', '.join(DEINTERLACE)}"
            )


def first_working(codecs: Sequence[str] = HARDWARE_FIRST) -> str:
    """Return the first encoder that encodes a frame on this machine: an encoder that is compiled in may not work."""
    for codec in codecs:
        with contextlib.suppress(av.FFmpegError, ValueError, KeyError):
            encoder = Encoder(256, 256, 24.0, codec=codec)
            encoder.add(av.VideoFrame.from_ndarray(np.zeros((384, 256), np.uint8), format="yuv420p"))
            encoder.finish()
            return codec
    raise ValueError(f"encode.codec: found none of {', '.join(codecs)} working, expected one")


@cache
def hardware_first() -> tuple[str, ...]:
    """Return the encoders to try for a clip, in order, from the first one that works on this machine."""
    return HARDWARE_FIRST[HARDWARE_FIRST.index(first_working()) :]


def open_encoder(height: int, width: int, fps: float, policy: EncodePolicy) -> tuple[Encoder, str]:
    """Return an encoder and its name; hardware refuses some sizes, and too many clips at a time."""
    codecs = hardware_first() if policy.codec == "auto" else (policy.codec,)
    for codec in codecs:
        encoder = Encoder(height, width, fps, policy.crf, policy.preset, codec)
        if codec == codecs[-1]:
            return encoder, codec
        with contextlib.suppress(av.FFmpegError):
            encoder.stream.codec_context.open()
            return encoder, codec
    raise AssertionError("the last encoder is returned")


def schedule(
    times: np.ndarray, bounds: tuple[int, int], usual: Fraction, fps: float | None
) -> tuple[np.ndarray, Fraction]:
    """Return the times of the frames that a clip shows one after the other, and the constant rate it plays them at.

    times: when each frame appears; bounds: start and end of the clip; all in microseconds. Frames at an even rate are
    kept, once each, at the source's `usual` rate, or at their own rate if it differs. Frames at an uneven rate, or at
    one above `fps`, are put on a clock of the rate that fits best, at most `fps`: at every moment the clip shows what
    the source shows.
    """
    rate, most = even_rate(times, usual), FASTEST_CLOCK if fps is None else Fraction(fps).limit_denominator(1001)
    if plays_evenly(times, bounds, rate):
        if rate <= most:
            return times, rate
    elif len(times) > STRETCH:
        rate = usual_rate(times)
    else:
        rate = usual
    rate = min(max(rate, SLOWEST_CLOCK), most)
    return times[lay(times, *bounds, rate)], rate


def plays_evenly(times: np.ndarray, bounds: tuple[int, int], rate: Fraction) -> bool:
    """Tell whether a clip shows its frames in time if it plays them at this rate, the first and the last one too."""
    longest = PAUSE * MICROSECOND / rate
    edges = max(times[0] - bounds[0], bounds[0] - times[0], bounds[1] - times[-1])
    return SLOWEST_EVEN <= rate < FASTEST_CLOCK and edges <= longest and is_even(times)


def is_bt601(frame: av.VideoFrame) -> bool:
    """Tell whether a frame is yuv420p in BT.601 of limited range; values that a frame does not state count as such."""
    matrix, limits = int(frame.colorspace) in BT601, int(frame.color_range) in (0, ColorRange.MPEG)
    return frame.format.name == "yuv420p" and matrix and limits


class Fitter:
    """Crop, turn and scale frames to yuv420p in BT.601, in standard range and on white; see `Screen`.

    box: top, left, height, width in the first frame as it is coded; display: how that is shown. Frames of another size
    are cropped in proportion and scaled to the same one. The matrix is changed after scaling, when there are fewer
    pixels, and only if it is another. Every step is bit-exact on every processor but for those of high dynamic range.
    """

    def __init__(self, first: av.VideoFrame, box: tuple[int, int, int, int], display: Display, short_side: int) -> None:
        self.box, self.coded, self.clear = box, (first.width, first.height), False
        self.width, self.height = even_size(display.size(box[3], box[2]), short_side)
        self.graphs: dict[tuple[object, ...], Graph] = {}

    def __call__(self, frame: av.VideoFrame, display: Display) -> av.VideoFrame:
        """Return a new frame, made of one that is shown like this."""
        turned, pixels = display.orientation, "yuv420p"
        if not is_plain(frame, display.profile):
            pixels = rgb_format(frame, display.profile)
        kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, turned, pixels
        if kind not in self.graphs:
            self.graphs[kind] = chain(frame, self.steps(frame, turned, pixels))
        fitted = push(self.graphs[kind], frame)
        if pixels == "yuv420p":
            return fitted
        image = fitted.to_ndarray()
        self.clear = self.clear or is_clear(image)
        image = np.ascontiguousarray(turned.turn(to_standard(image, frame, display.profile)))
        fitted = av.VideoFrame.from_ndarray(image, format="rgb24")
        if "rgb24" not in self.graphs:
            self.graphs["rgb24"] = chain(fitted, [("scale", f"{TO_BT601}:flags=accurate_rnd+bitexact"), YUV420P])
        return push(self.graphs["rgb24"], fitted)

    def steps(self, frame: av.VideoFrame, turned: Orientation, pixels: str) -> list[tuple[str, str]]:
        """Return the filters for frames like this one; those that go on as RGB are turned later."""
        top, left, height, width = (
            round(side * full / first)
            for side, full, first in zip(
                self.box, (frame.height, frame.width) * 2, (self.coded[1], self.coded[0]) * 2, strict=True
            )
        )
        steps = [
            ("crop", f"{width}:{height}:{left}:{top}:exact=1"),
            ("scale", "{}:{}:flags=area+accurate_rnd+bitexact".format(*turned.swap((self.width, self.height)))),
        ]
        if pixels != "yuv420p":
            return [*steps, ("format", pixels)]
        return [
            *steps,
            *[("scale", f"{TO_BT601}:flags=accurate_rnd+bitexact")] * (not is_bt601(frame)),
            YUV420P,
            *[("transpose", "cclock_flip")] * turned.transposed,
            *[("hflip", None)] * turned.across,
            *[("vflip", None)] * turned.down,
        ]


TO_BT601, YUV420P = "out_color_matrix=bt601:out_range=tv", ("format", "yuv420p")


def chain(frame: av.VideoFrame, steps: Sequence[tuple[str, str | None]]) -> Graph:
    """Return filters, one after the other, for frames like this one."""
    graph = Graph()
    graph.threads = 1
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        f":time_base=1/{MICROSECOND}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    )
    nodes = [graph.add(name, arguments) for name, arguments in [("buffer", source), *steps, ("buffersink", None)]]
    graph.link_nodes(*nodes).configure()
    return graph


def push(graph: Graph, frame: av.VideoFrame) -> av.VideoFrame:
    """Return what a frame becomes."""
    graph.vpush(frame)
    return graph.vpull()
