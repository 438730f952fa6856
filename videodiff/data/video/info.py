"""What a video is and how a file from anywhere is opened, without torch: data preparation starts many processes."""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
from av.stream import Disposition
from PIL import Image

from videodiff.data.video.boxes import BoxesError, top_boxes

# What holds its pictures itself. Not playlists, session descriptions, patterns and the like, in which a file names
# others for ffmpeg to open, here or at any host.
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,rm,dv,wtv,ivf,obu,"
    "av1,h264,hevc,m4v,vc1,mjpeg,yuv4mpegpipe,gif,apng,webp"
)
STILL_FORMATS = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,j2k_pipe,qoi_pipe,pbm_pipe,pgm_pipe,ppm_pipe,pam_pipe"
# Pixels of a picture, coded or shown: 8192 x 8192. A header of a few bytes may ask for much more than there is memory.
MAX_PIXELS = 2**26
OPTIONS = {
    "format_whitelist": f"{VIDEO_FORMATS},{STILL_FORMATS}",
    "protocol_whitelist": "",
    "max_pixels": str(MAX_PIXELS),
}
# Or ffmpeg decodes a picture to learn more of the stream than reading it takes.
QUICK = {"skip_frame": "all", "max_probe_packets": "0"}
# WebM has the alpha of a picture beside it, and ffmpeg's own decoders of these pass it over.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Bytes that are read at a time, from memory and from a disk.
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
    """What the header of a still picture says: its size as stored, how it is turned, EXIF 1 to 8, its ICC profile."""

    width: int
    height: int
    exif: int
    profile: bytes = b""


@contextmanager
def open_video(source: bytes | str | Path, **options: str) -> Iterator[av.container.InputContainer]:
    """Open a video or picture, and nothing but its own bytes, whatever its name and whatever it asks for.

    options: further ones of ffmpeg. DecodeError where its format is none that holds its pictures itself, or where a
    picture has over `MAX_PIXELS`.
    """
    # ffmpeg gets no name: it could find others by it.
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
            # ffmpeg forgets a size that it is not to take. Without a decoder it tells most of what the container says.
            forgotten = not all(map(all, sizes(container))) and "skip_frame" not in options
            if forgotten:
                with open_video(source, **QUICK, max_pixels=str(2**31 - 1)):
                    pass
            try:
                yield container
            except av.FFmpegError as error:
                if not forgotten:
                    raise
                limit = f"expected one of at most {MAX_PIXELS:,} pixels"
                raise DecodeError(f"found pictures of no size that can be, {limit}: {error.strerror}") from error


def sizes(container: av.container.InputContainer) -> list[tuple[int, int]]:
    """Return the coded width and height of every stream of pictures, zeros where they are not known."""
    contexts = [stream.codec_context for stream in container.streams.video]
    return [(context.width, context.height) for context in contexts if context is not None]


def is_still(container: av.container.InputContainer) -> bool:
    """Tell whether this is a file of one still picture."""
    return container.format.name.endswith("_pipe")


def check_pixels(width: int, height: int) -> None:
    """Raise where a picture of this size is not to be decoded."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"found {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all")


def read_still(source: bytes | str | Path) -> Still:
    """Read the header of a still picture; zeros and 1 where its kind has none that is known; see `check_pixels`."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=("JPEG", "PNG", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM")) as image:
                check_pixels(*image.size)
                # Of a PNG its own method would decode the picture.
                profile = image.info.get("icc_profile") or b""
                return Still(*image.size, Image.Image.getexif(image).get(0x0112, 1), profile)
        except Image.DecompressionBombError as error:
            raise DecodeError(f"found a picture that is too large: {error}") from error
        except DecodeError:
            raise
        # Pillow knows a broken header by these; what can be had of the picture, ffmpeg decodes.
        except (OSError, SyntaxError, ValueError, TypeError):
            return Still(0, 0, 1)


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream that ffmpeg finds best: a file may hold several."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise DecodeError("found no video stream that can be decoded, expected one")
    # Phones and large AVIF cut a picture into tiles, each a stream of its own.
    if stream.disposition & Disposition.dependent:
        raise DecodeError("found a picture that is cut into tiles, expected one piece, such as jpg or png")
    return stream


def decoder_of(stream: av.VideoStream) -> av.VideoCodecContext:
    """Return the decoder of a stream, of one thread; of VP8 and VP9 with alpha the one that knows what alpha is."""
    decoder, other = stream.codec_context, ALPHA_DECODERS.get(stream.codec_context.name)
    if other and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(other, "r")
    # What `open_video` was told holds for the look at the header only.
    if not decoder.is_open:
        decoder.thread_count, decoder.options = 1, {"max_pixels": OPTIONS["max_pixels"]}
    return decoder
