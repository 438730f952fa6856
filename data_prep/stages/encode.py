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

from videodiff.data.encode import CODECS, Encoder
from videodiff.data.timing import FASTEST_CLOCK, MICROSECOND, PAUSE, SLOWEST_CLOCK, STRETCH, is_even, lay, usual_rate

# Tried in this order where hardware is wanted.
HARDWARE_FIRST = ("h264_nvenc", "libx264")
# Frames a second, which mp4 can say of even ones.
SLOWEST_EVEN = Fraction(1, 1000)
# Unspecified, BT.470 BG and SMPTE 170M, in the numbers of ITU-T H.273.
BT601 = (2, 5, 6)


@dataclass(frozen=True)
class EncodePolicy:
    """How every clip is encoded: H.264, yuv420p, closed GOP of 12, index in front, one stream, constant frame rate.

    short_side: pixels, larger clips are scaled down to it, none is scaled up; fps: faster sources lose frames until
    they are no faster, slower ones keep their rate; crf, preset, codec: see `videodiff.data.encode`, or `auto` for the
    hardware's encoder where there is one that works. Only libx264 gives the same bytes on every machine.
    """

    short_side: int = 256
    fps: float | None = None
    crf: int = 18
    preset: str = "veryfast"
    codec: str = "libx264"

    def __post_init__(self) -> None:
        if self.short_side < 2 or not 0 <= self.crf <= 51 or not (self.fps is None or 0 < self.fps < 1000):
            raise ValueError(
                f"encode: found short_side={self.short_side} crf={self.crf} fps={self.fps}, expected at least 2, 0 to "
                "51, above 0 and below 1000 or null"
            )
        if self.codec not in (*CODECS, "auto"):
            raise ValueError(f"encode.codec: found {self.codec!r}, expected one of {', '.join(CODECS)}, auto")


def first_working(codecs: Sequence[str] = HARDWARE_FIRST) -> str:
    """Return the first encoder that encodes a frame here: that one is compiled in does not mean that it works."""
    for codec in codecs:
        with contextlib.suppress(av.FFmpegError, ValueError, KeyError):
            encoder = Encoder(256, 256, 24.0, codec=codec)
            encoder.add(av.VideoFrame.from_ndarray(np.zeros((384, 256), np.uint8), format="yuv420p"))
            encoder.finish()
            return codec
    raise ValueError(f"encode.codec: found none of {', '.join(codecs)} working, expected one")


@cache
def hardware_first() -> tuple[str, ...]:
    """Return the encoders to try one after the other for a clip: from the first that works here."""
    return HARDWARE_FIRST[HARDWARE_FIRST.index(first_working()) :]


def open_encoder(height: int, width: int, fps: float, policy: EncodePolicy) -> tuple[Encoder, str]:
    """Return an encoder and its name; hardware refuses some sizes, and more clips at a time than it is made for."""
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

    times: when each frame comes to be shown, bounds: from when to when the clip is cut, all in microseconds. Frames
    that come evenly are kept, once each, at the source's `usual` rate or, where these come at another, at their own.
    Uneven ones, and those that come faster than `fps`, are laid on a clock of the rate they fit best, at most `fps`:
    what the clip shows at a moment is what the source shows then.
    """
    rate, most = mean_rate(times, usual), FASTEST_CLOCK if fps is None else Fraction(fps).limit_denominator(1001)
    if plays_evenly(times, bounds, rate):
        if rate <= most:
            return times, rate
    elif len(times) > STRETCH:
        rate = usual_rate(times)
    else:
        rate = usual
    rate = min(max(rate, SLOWEST_CLOCK), most)
    return times[lay(times, *bounds, rate)], rate


def mean_rate(times: np.ndarray, usual: Fraction) -> Fraction:
    """Return the mean rate of a clip's frames: the source's `usual` one unless it is half a frame off at the end."""
    if len(times) < 2:
        return usual
    length = Fraction(int(times[-1] - times[0]), MICROSECOND)
    return usual if abs(length * usual - (len(times) - 1)) <= Fraction(1, 2) else (len(times) - 1) / length


def plays_evenly(times: np.ndarray, bounds: tuple[int, int], rate: Fraction) -> bool:
    """Tell whether a clip shows its frames in time if it plays them at this rate, the first and the last one too."""
    longest = PAUSE * MICROSECOND / rate
    edges = max(times[0] - bounds[0], bounds[0] - times[0], bounds[1] - times[-1])
    return SLOWEST_EVEN <= rate < FASTEST_CLOCK and edges <= longest and is_even(times)


def even_size(width: float, height: float, short_side: int) -> tuple[int, int]:
    """Return width and height, both even, scaled down to this short side where they are larger."""
    scale = min(1.0, short_side / min(width, height))
    return tuple(max(2 * round(side * scale / 2), 2) for side in (width, height))


def is_bt601(frame: av.VideoFrame) -> bool:
    """Tell whether a frame is yuv420p in BT.601 of limited range, as those are that say nothing."""
    matrix, limits = int(frame.colorspace) in BT601, int(frame.color_range) in (0, ColorRange.MPEG)
    return frame.format.name == "yuv420p" and matrix and limits


class Fitter:
    """Crop, turn and scale frames like `first` to yuv420p in BT.601.

    box: top, left, height, width in the frame as coded; ratio: width of a pixel as shown over its height. The matrix
    is changed after scaling, when there are fewer pixels, and only if it is another. Every step is bit-exact on every
    processor.
    """

    def __init__(self, first: av.VideoFrame, box: tuple[int, int, int, int], ratio: Fraction, short_side: int) -> None:
        top, left, height, width = box
        turns = round(first.rotation / 90) % 4
        shown = (width * ratio, height) if turns % 2 == 0 else (height, width * ratio)
        self.width, self.height = even_size(*shown, short_side)
        scaled = (self.width, self.height) if turns % 2 == 0 else (self.height, self.width)
        self.graph = Graph()
        self.graph.threads = 1
        steps = [
            ("buffer", f"video_size={first.width}x{first.height}:pix_fmt={first.format.name}"
             + f":time_base=1/{MICROSECOND}:colorspace={int(first.colorspace)}:range={int(first.color_range)}"),
            ("crop", f"{width}:{height}:{left}:{top}:exact=1"),
            ("scale", "{}:{}:flags=area+accurate_rnd+bitexact".format(*scaled)),
            *[("scale", "out_color_matrix=bt601:out_range=tv:flags=accurate_rnd+bitexact")] * (not is_bt601(first)),
            ("format", "yuv420p"),
            *[("transpose", "cclock")] * turns,
            ("buffersink", None),
        ]  # fmt: skip
        nodes = [self.graph.add(name, arguments) for name, arguments in steps]
        self.graph.link_nodes(*nodes).configure()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return a new frame from one of the same size and format as the first."""
        self.graph.vpush(frame)
        return self.graph.vpull()
