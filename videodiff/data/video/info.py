"""Open video files from anywhere safely and read what they state; no torch, as preparation starts many processes."""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.stream import Disposition
from PIL import Image

from videodiff.data.video.boxes import BoxesError, top_boxes

# Formats that hold their pictures themselves. Playlists, session descriptions and patterns are left out: they name
# other files that ffmpeg would open, here or at any host.
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,rm,dv,wtv,ivf,obu,"
    "av1,h264,hevc,m4v,vc1,mjpeg,yuv4mpegpipe,gif,apng,webp"
)
STILL_FORMATS = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,j2k_pipe,qoi_pipe,pbm_pipe,pgm_pipe,ppm_pipe,pam_pipe"
# The most pixels of a picture, coded or shown: 8192 x 8192. A header of a few bytes may state more than memory holds.
MAX_PIXELS = 2**26
OPTIONS = {
    "format_whitelist": f"{VIDEO_FORMATS},{STILL_FORMATS}",
    "protocol_whitelist": "",
    "max_pixels": str(MAX_PIXELS),
}
# Otherwise ffmpeg decodes a picture to learn more about the stream than we need.
QUICK = {"skip_frame": "all", "max_probe_packets": "0"}
# WebM stores alpha beside the picture; ffmpeg's own decoders of these codecs ignore it.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Bytes per read, from memory and from disk.
NEAR, FAR = 2**15, 2**18


class DecodeError(ValueError):
    """A video that cannot be read."""


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels as shown, number of frames, frames a second (mean), seconds."""

    width: int
    height: int
    frames: int
    fps: float
    duration: float


class Still(NamedTuple):
    """The header of a still picture: its stored size, its orientation (EXIF 1 to 8), its ICC profile."""

    width: int
    height: int
    exif: int
    profile: bytes = b""


@contextmanager
def open_video(source: bytes | str | Path, **options: str) -> Iterator[av.container.InputContainer]:
    """Open a video or picture; only its own bytes are read, whatever other files or addresses it names.

    options: further ones of ffmpeg. DecodeError where its format is none that holds its pictures itself, or where a
    picture has over `MAX_PIXELS`.
    """
    # ffmpeg gets no file name, as it could find other files by it.
    size = NEAR if isinstance(source, bytes) else FAR
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        if not file.seek(0, io.SEEK_END):
            raise DecodeError("found an empty file, expected a video or a picture")
        try:
            deque(top_boxes(file), 0)
        except BoxesError as error:
            raise DecodeError(str(error)) from error
        file.seek(0)
        try:
            container = av.open(file, options=OPTIONS | options, buffer_size=size)
        except av.ArgumentError as error:
            raise DecodeError(
                "found no video or picture that is taken, expected a file that holds its pictures itself, such as mp4, "
                "webm or jpg (no playlist or session description)"
            ) from error
        with container:
            if is_still(container):
                read_still(source)
            for size in sizes(container):
                check_pixels(*size)
            # ffmpeg drops a size above its limit. Without a decoder it keeps most of what the container states.
            forgotten = not all(map(all, sizes(container))) and "skip_frame" not in options
            if forgotten:
                with open_video(source, **QUICK, max_pixels=str(2**31 - 1)):
                    pass
            try:
                yield container
            except av.FFmpegError as error:
                if not forgotten:
                    raise
                raise DecodeError(
                    f"found no size of its pictures ({error.strerror}): the file is damaged or cut off, of a kind that "
                    f"is not read (animated webp), or its pictures have over {MAX_PIXELS:,} pixels"
                ) from error


def sizes(container: av.container.InputContainer) -> list[tuple[int, int]]:
    """Return the coded width and height of every video stream, zeros if unknown."""
    contexts = [stream.codec_context for stream in container.streams.video]
    return [(context.width, context.height) for context in contexts if context is not None]


def is_still(container: av.container.InputContainer) -> bool:
    """Return whether this is a file of one still picture."""
    return container.format.name.endswith("_pipe")


def check_pixels(width: int, height: int) -> None:
    """Raise if a picture of this size has too many pixels to decode."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"found {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all")


def read_still(source: bytes | str | Path) -> Still:
    """Read the header of a still picture; size zero and orientation 1 if its format is unknown; see `check_pixels`."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=("JPEG", "PNG", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM")) as image:
                check_pixels(*image.size)
                # `getexif` of a PNG would decode the picture.
                profile = image.info.get("icc_profile") or b""
                return Still(*image.size, Image.Image.getexif(image).get(0x0112, 1), profile)
        except Image.DecompressionBombError as error:
            raise DecodeError(f"found a picture that is too large: {error}") from error
        except DecodeError:
            raise
        # Pillow raises these for a broken header; ffmpeg may still decode the picture.
        except (OSError, SyntaxError, ValueError, TypeError):
            return Still(0, 0, 1)


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream that ffmpeg finds best: a file may hold several."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise DecodeError("found no video stream that can be decoded, expected one")
    # The cover of a song is a stream of one picture.
    if stream.disposition & Disposition.attached_pic:
        raise DecodeError("found no video but an attached picture, as a cover is, expected a video or a picture")
    # Phones and large AVIF files cut a picture into tiles, and each tile is a stream.
    if stream.disposition & Disposition.dependent:
        raise DecodeError("found a picture that is cut into tiles, expected one piece: convert it to jpg or png")
    return stream


def stated_rate(stream: av.VideoStream) -> Fraction | None:
    """Return the frames per second that a file states, None if it states none."""
    # Of H.264 and HEVC without a container ffmpeg says 25 in the mean, whatever their headers say.
    bare = stream.container.format.name in ("h264", "hevc")
    return (None if bare else stream.average_rate) or stream.guessed_rate


def decoder_of(stream: av.VideoStream) -> av.VideoCodecContext:
    """Return the decoder of a stream, with one thread; for VP8 and VP9 with alpha, the decoder that reads alpha."""
    decoder, other = stream.codec_context, ALPHA_DECODERS.get(stream.codec_context.name)
    if other and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(other, "r")
    # The options of `open_video` apply to the probing of the header only, so set them again.
    if not decoder.is_open:
        decoder.thread_count, decoder.options = 1, {"max_pixels": OPTIONS["max_pixels"]}
    return decoder
