"""Small videos and datasets for the tests of the data room."""

from __future__ import annotations

import io
import os
import subprocess
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import decord
import numpy as np

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
    share_the_core()
    return file.getvalue()


def share_the_core() -> None:
    """Undo what SVT-AV1 does where it may: the thread that calls it has real-time priority, and nothing else runs."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


# What takes from a stream of each codec what it says of its colours. VP9 has one number, of the matrix.
SILENCE = {
    "hevc": "hevc_metadata=colour_primaries=2:transfer_characteristics=2:matrix_coefficients=2",
    "vp9": "vp9_metadata=color_space=unknown",
    "av1": "av1_metadata=color_primaries=2:transfer_characteristics=2:matrix_coefficients=2",
}


def untold(video: bytes, container: str, *names: str) -> bytes:
    """Return a video with the same pictures, of whose colours the container alone states these, no longer the stream.

    names: of the codec's numbers of colours, all of them without any.
    """
    with av.open(io.BytesIO(video)) as source:
        name, _, numbers = SILENCE[source.streams.video[0].codec_context.codec.canonical_name].partition("=")
    chosen = ":".join(number for number in numbers.split(":") if not names or number.partition("=")[0] in names)
    with TemporaryDirectory() as folder:
        told, silent = Path(folder) / "told", Path(folder) / "silent"
        told.write_bytes(video)
        how = ["-c", "copy", "-bsf:v", f"{name}={chosen}", "-f", container]
        subprocess.run(["ffmpeg", "-v", "error", "-i", told, *how, silent], check=True)
        found = silent.read_bytes()
    with av.open(io.BytesIO(found)) as container_of:
        stream = container_of.streams.video[0]
        stated = [int(getattr(stream.codec_context, key)) for key in ("colorspace", "color_trc")]
        frame = next(container_of.decode(stream))
        coded = [int(frame.colorspace), int(frame.color_trc)]
    assert 2 not in stated, "the container says it"
    assert 2 in coded, "the stream does not"
    return found


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
