"""Animated WebP, of which FFmpeg reads the first frame at most, as a video that it reads whole."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from videodiff.data.video.info import DecodeError, check_pixels

MILLISECOND = Fraction(1, 1000)


def is_animated(data: bytes) -> bool:
    """Tell whether a file is an animated WebP."""
    return data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and bool(data[20:21] and data[20] & 2)


def as_video(data: bytes) -> bytes:
    """Return the frames of an animated WebP, with their alpha, without loss in a Matroska file.

    Its orientation and its profile of colours are ignored, as Chromium does, although it heeds both in an animated PNG.
    """
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image, av.open(file, "w", format="matroska") as out:
            check_pixels(*image.size)
            stream = out.add_stream("ffv1", rate=Fraction(1000, duration(image)))
            stream.width, stream.height = image.size
            stream.pix_fmt, stream.time_base, time = "bgra", MILLISECOND, 0
            stream.codec_context.time_base = MILLISECOND
            for number in range(image.n_frames):
                image.seek(number)
                frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), format="rgba")
                frame = frame.reformat(format="bgra")
                frame.pts, frame.time_base = time, MILLISECOND
                time += duration(image)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    except DecodeError:
        raise
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"cannot be decoded: {error}") from error
    return file.getvalue()


def duration(image: Image.Image) -> int:
    """Return for how many milliseconds the frame at hand is shown; browsers take 100 where a file says less than 11."""
    shown = int(image.info.get("duration") or 0)
    return shown if shown > 10 else 100
