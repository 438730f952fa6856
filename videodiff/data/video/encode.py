"""Encode frames as H.264, in the format of every clip in a dataset: any short window of it decodes fast."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from videodiff.data.video.timing import FASTEST_CLOCK

GOP = 12
# Frames a second of a file; of a faster one readers take the clock on which uneven frames are laid.
LEAST_FPS, MOST_FPS = 0.001, int(FASTEST_CLOCK)


def check_rate(fps: float) -> None:
    """Raise if a file cannot have so many frames a second."""
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise ValueError(f"fps: found {fps}, expected a number from {LEAST_FPS} to {MOST_FPS}")


def encode(frames: Iterable[np.ndarray], fps: float, crf: int = 18, preset: str = "veryfast") -> bytes:
    """Return an mp4 with one H.264 stream: yuv420p, closed GOP of 12, index in front.

    frames: uint8 `h w c` each (an array `t h w c` or any iterable), even height and width; fps: frames a second.
    crf: 0 (lossless) to 51; 18 is visually near lossless. One thread, so the same frames give the same bytes.
    """
    check_rate(fps)
    encoder, reformatter = None, VideoReformatter()
    for number, pixels in enumerate(frames):
        check(pixels, number)
        if encoder is not None and pixels.shape[:2] != (encoder.stream.height, encoder.stream.width):
            size = f"{encoder.stream.height} x {encoder.stream.width}"
            raise ValueError(f"frame {number}: found {pixels.shape[0]} x {pixels.shape[1]}, expected {size} as before")
        if encoder is None:
            encoder = Encoder(pixels.shape[0], pixels.shape[1], fps, crf, preset)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        encoder.add(reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU601, threads=1))
    if encoder is None:
        raise ValueError("frames: found none, expected at least one")
    return encoder.finish()


class Encoder:
    """Encode one mp4 frame by frame, see `encode`."""

    def __init__(
        self, height: int, width: int, fps: float, crf: int = 18, preset: str = "veryfast", codec: str = "libx264"
    ) -> None:
        self.file, self.frames = io.BytesIO(), 0
        again = lambda *_: io.BytesIO(self.file.getvalue())  # noqa: E731
        self.container = av.open(self.file, "w", format="mp4", options=MUXER, io_open=again)
        self.stream = h264_stream(self.container, height, width, fps, crf, preset, codec)
        self.fps = float(self.stream.codec_context.framerate)

    def add(self, frame: av.VideoFrame) -> None:
        """Encode the next frame: yuv420p in BT.601, in the stream's size. Timestamp and picture type are ignored."""
        frame.pts, frame.time_base, frame.pict_type = self.frames, self.stream.codec_context.time_base, 0
        self.frames += 1
        self.container.mux(self.stream.encode(frame))

    def finish(self) -> bytes:
        """Return the bytes of the finished file."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()


# bitexact keeps the version of the muxer out of the bytes. faststart reads the file again, through io_open.
MUXER = {"movflags": "+faststart", "fflags": "+bitexact"}


def h264_stream(
    container: av.container.OutputContainer, height: int, width: int, fps: float, crf: int, preset: str, codec: str
) -> av.VideoStream:
    """Add the one stream.

    The matrix is BT.601 and tagged so: a reader that ignores tags assumes BT.601 too, whatever the size.
    """
    rate = Fraction(fps).limit_denominator(1001)
    options = {"g": str(GOP), "flags": "+cgop+bitexact", **CODECS[codec](crf, preset)}
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    context = stream.codec_context
    context.thread_count, context.time_base = 1, 1 / rate
    context.colorspace, context.color_range = Colorspace.SMPTE170M, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


# The options of each encoder for a quality. x264 runs without mbtree: on small frames mbtree reads uninitialised
# memory, so that equal frames sometimes gave different bytes. NVENC has presets of its own; forced-idr closes groups.
CODECS = {
    "libx264": lambda crf, preset: {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"},
    "h264_nvenc": lambda crf, preset: {"rc": "vbr", "cq": str(crf), "bf": "0", "forced-idr": "1"},
}


def check(pixels: np.ndarray, number: int) -> None:
    """Raise if a frame is not uint8 `h w 3` of even size."""
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2 or 0 in shape:
        raise ValueError(
            f"frame {number}: found {pixels.dtype} of shape {shape}, expected uint8 (height, width, 3), both even"
        )
