"""Audio: the sound of a span as a file of its own, since the mp4 of a clip has one stream."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np

from data_prep.cut.spans import MICROSECOND, Span
from videodiff.data.video.info import DecodeError, open_video

# Seconds before a span at which decoding starts: codecs of sound need some frames to settle.
SETTLE = 1.0


def cut_audio(source: str | Path, span: Span, bitrate: int = 128_000) -> bytes | None:
    """Return the sound of exactly this span, to the sample, as AAC in mp4, or None where the source has no sound.

    Where the source's sound begins late, pauses or ends early there is silence. bitrate: bits a second.
    """
    try:
        with open_video(source) as container:
            if not container.streams.audio:
                return None
            return encode_audio(*read_samples(container, container.streams.audio[0], span), bitrate)
    except av.FFmpegError as error:
        raise DecodeError(f"its sound cannot be decoded: {error.strerror}") from error


def read_samples(
    container: av.container.InputContainer, stream: av.AudioStream, span: Span
) -> tuple[np.ndarray, int, str]:
    """Return float32 `channels samples`, samples a second, and the layout of the channels."""
    rate, layout, origin = stream.rate, stream.layout.name, container.start_time or 0
    samples = np.zeros((stream.channels, round((span.end - span.start) * rate)), np.float32)
    container.seek(origin + round(max(span.start - SETTLE, 0) * MICROSECOND))
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for frame in container.decode(stream):
        start = round((frame.time - origin / MICROSECOND - span.start) * rate)
        if start >= samples.shape[1]:
            break
        for part in resampler.resample(frame):
            new = part.to_ndarray()[:, max(-start, 0) : samples.shape[1] - start]
            samples[:, max(start, 0) : max(start, 0) + new.shape[1]] = new
    return samples, rate, layout


def encode_audio(samples: np.ndarray, rate: int, layout: str, bitrate: int) -> bytes:
    """Return float32 `channels samples` as AAC in mp4, index in front."""
    file = io.BytesIO()
    again = lambda *_: io.BytesIO(file.getvalue())  # noqa: E731
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(file, "w", format="mp4", options=options, io_open=again) as out:
        stream = out.add_stream("aac", rate=rate, layout=layout, options={"flags": "+bitexact"})
        stream.bit_rate = bitrate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()
