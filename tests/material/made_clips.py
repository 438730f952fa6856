"""Small videos and datasets for the tests of the data room."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
from av.bitstream import BitStreamFilterContext

from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode


def moving_square(frames: int = 8, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Return uint8 `t h w c` in which no two frames are alike: a red square over a slowly changing grey."""
    video = np.empty((frames, height, width, 3), dtype=np.uint8)
    for t in range(frames):
        video[t] = 40 + (t * 11 + seed * 29) % 160
        x = (t * 3 + seed) % (width - 12)
        video[t, height // 4 : height // 4 + 12, x : x + 12] = (255, 0, 0)
    return video


def by_decord(video: bytes, numbers) -> np.ndarray:
    """Return frames decoded by decord, as in many other projects."""
    return decord.VideoReader(io.BytesIO(video), num_threads=1).get_batch(list(numbers)).asnumpy()


def write_video(
    frames: np.ndarray, codec: str = "libx264", pixels: str = "yuv420p", container: str = "mp4", times=None, **options
) -> bytes:
    """Return an encoded video; `times` are presentation times in frames of 25 a second."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "20", **options})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.time_base = Fraction(1, 25)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    # SVT-AV1 gives the thread that calls it real-time priority where it may: then nothing else runs on this core.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return file.getvalue()


COLOURS = ("colour_primaries", "transfer_characteristics", "matrix_coefficients")


def untold(video: bytes, container: str, names: tuple[str, ...] = COLOURS) -> bytes:
    """Return HEVC with the same pictures, of whose colours the container alone states these, no longer the stream."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container) as out:
        stream = source.streams.video[0]
        made = out.add_stream_from_template(stream)
        silent = BitStreamFilterContext("hevc_metadata=" + ":".join(f"{name}=2" for name in names), stream, made)
        for packet in source.demux(stream):
            for kept in silent.filter(packet if packet.dts is not None else None):
                kept.stream = made
                out.mux(kept)
    with av.open(io.BytesIO(file.getvalue())) as found:
        stream = found.streams.video[0]
        assert stream.codec_context.color_trc != 2, "the container says it"
        assert int(next(found.decode(stream)).color_trc) == 2, "the stream does not"
    return file.getvalue()


def sample(number: int, frames: int = 8, captions: tuple[str, ...] | None = None, truth=None):
    """Return members and row of a clip of 5 frames a second whose content and caption follow from its number."""
    video = encode(moving_square(frames, seed=number), 5.0)
    captions = (f"a red square number {number}",) if captions is None else captions
    return clip_sample(video, probe(video), captions, source="made", licence="CC0-1.0", truth=truth)


def write_dataset(root: Path, count: int = 6, frames: int = 8, shard_bytes: int = 20_000, first: int = 0) -> Path:
    """Write `count` clips with keys clip0, clip1, ... in shards of about three."""
    with ShardWriter(root, shard_bytes) as writer:
        for number in range(first, first + count):
            writer.add(f"clip{number}", *sample(number, frames))
    return root
