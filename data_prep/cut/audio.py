"""Audio: the sound of a span as a file of its own, since the mp4 of a clip has one stream."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

from data_prep.cut.spans import MICROSECOND, Span
from videodiff.data.video.info import DecodeError, open_video

# Seconds before a span at which decoding starts: codecs of sound need some frames to settle.
SETTLE = 1.0
# Seconds by which a time may differ from the end of the frame before, and the sound still goes on there: Matroska and
# others round times to milliseconds, and a millisecond is 48 samples. Frames that may be lost have 20 ms and more.
JITTER = 0.01
# The samples a second that AAC can have; other sound gets RATE.
RATES, RATE = av.Codec("aac", "w").audio_rates, 48000
# What channels mean where a file does not say it, by their number: PCM in AVI and Matroska.
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
# All channels in one plane: PyAV crashes when it counts eight planes.
PACKED = "flt"


def cut_audio(source: str | Path, span: Span, bitrate: int = 128_000) -> bytes | None:
    """Return the sound of exactly this span, to the sample, as AAC in mp4, or None where the source has no sound.

    Where the source's sound begins late, pauses or ends early there is silence. bitrate: bits a second. Memory: a
    second of the sound.
    """
    try:
        with open_video(source) as container:
            if not container.streams.audio:
                return None
            try:
                origin = (container.start_time or 0) / MICROSECOND
                container.seek(round((origin + max(span.start - SETTLE, 0)) * MICROSECOND))
            except av.FFmpegError:
                # A seek that fails, as in FLV to a time before the first keyframe, may have skipped a part of the file.
                with open_video(source) as start:
                    return read_sound(start, span, bitrate)
            return read_sound(container, span, bitrate)
    except av.FFmpegError as error:
        raise DecodeError(f"its sound cannot be decoded: {error.strerror}") from error


def read_sound(container: av.container.InputContainer, span: Span, bitrate: int) -> bytes:
    """Return the sound of a span, see `cut_audio`; the container is read on from where it is."""
    stream = container.streams.audio[0]
    layout = stream.layout.name
    if layout == f"{stream.channels} channels":
        layout = LAYOUTS.get(stream.channels, layout)
    return encode_audio(read_blocks(container, stream, layout, span), stream.rate, layout, bitrate)


def read_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, layout: str, span: Span
) -> Iterator[np.ndarray]:
    """Yield the samples of a span in blocks, float32 `channels samples`, of a second at most where there is silence."""
    rate, origin = stream.rate, (container.start_time or 0) / MICROSECOND
    length, done, end = round((span.end - span.start) * rate), 0, None
    resampler = av.AudioResampler(format=PACKED, layout=layout, rate=rate)
    for frame in container.decode(stream):
        start = round((frame.time - origin - span.start) * rate)
        if end is not None and abs(start - end) <= JITTER * rate:
            start = end
        end = start + frame.samples
        if start >= length:
            break
        for part in resampler.resample(frame):
            samples = part.to_ndarray().reshape(-1, stream.channels).T
            new = samples[:, max(done - start, 0) : max(length - start, 0)]
            if new.shape[1]:
                yield from silence(stream.channels, start - done, rate)
                yield new
                done = max(done, start) + new.shape[1]
    yield from silence(stream.channels, length - done, rate)


def silence(channels: int, samples: int, most: int) -> Iterator[np.ndarray]:
    """Yield blocks of silence, each of at most so many samples."""
    for start in range(0, samples, most):
        yield np.zeros((channels, min(most, samples - start)), np.float32)


def encode_audio(blocks: Iterable[np.ndarray], rate: int, layout: str, bitrate: int) -> bytes:
    """Return blocks of float32 `channels samples` as AAC in mp4, index in front."""
    file, done = io.BytesIO(), 0
    again = lambda *_: io.BytesIO(file.getvalue())  # noqa: E731
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(file, "w", format="mp4", options=options, io_open=again) as out:
        stream = out.add_stream(
            "aac", rate=rate if rate in RATES else RATE, layout=layout, options={"flags": "+bitexact"}
        )
        stream.bit_rate = bitrate
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.T).reshape(1, -1), PACKED, layout)
            frame.sample_rate, frame.pts = rate, done
            done += block.shape[1]
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()
