import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from tests.material.made_clips import by_decord, moving_square, write_video
from videodiff.data.video.decode import decode, probe
from videodiff.data.video.encode import LEAST_FPS, MOST_FPS, encode


@pytest.mark.parametrize("side", [32, 96, 1088])
@pytest.mark.parametrize("read", [decode, by_decord])
def test_a_colour_comes_back_here_and_in_decord_at_every_height(read, side):
    colours = np.array([(255, 0, 0), (0, 170, 0), (0, 0, 255), (235, 195, 0), (255, 255, 255), (0, 0, 0)])
    frames = np.broadcast_to(colours[:, None, None].astype(np.uint8), (6, side, 32, 3))
    found = read(encode(frames, 5.0), range(6)).astype(int)
    assert np.abs(found - frames).max() <= 4


def test_a_stream_tagged_bt709_keeps_its_colour_here_and_in_decord():
    red = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    red[..., 0] = 255
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.colorspace = 64, 64, "yuv420p", 1
        for image in red:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1)))
        container.mux(stream.encode(None))
    for read in (decode, by_decord):
        assert np.abs(read(file.getvalue(), [0, 1]).astype(int) - red).max() <= 4


def fidelity(frames: np.ndarray, **how) -> float:
    """Return the peak signal-to-noise ratio in decibel after encoding and decoding."""
    error = decode(encode(frames, 24.0, **how), range(len(frames))).astype(float) - frames
    return 10 * np.log10(255**2 / np.mean(error**2))


def waves(phase: float) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64]
    frames = [np.stack([128 + 100 * np.sin((x + y + 3 * t) / 20 + phase * c) for c in range(3)], -1) for t in range(12)]
    return np.array(frames).astype(np.uint8)


def test_grey_footage_comes_back_within_what_an_eye_can_tell():
    assert fidelity(waves(phase=0.0)) > 42


def test_coloured_footage_loses_little_beyond_what_half_the_colour_resolution_costs():
    assert fidelity(waves(phase=2.0)) > fidelity(waves(phase=2.0), crf=0) - 3


def test_the_stream_is_h264_yuv420p_with_its_index_in_front_and_no_group_longer_than_12():
    video = encode(np.zeros((40, 32, 32, 3), np.uint8), 5.0)
    with av.open(io.BytesIO(video)) as container:
        (stream,) = container.streams
        keyframes = [n for n, packet in enumerate(p for p in container.demux(stream) if p.size) if packet.is_keyframe]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert keyframes[0] == 0
    assert np.diff([*keyframes, 40]).max() <= 12
    assert video.index(b"moov") < video.index(b"mdat")


def test_every_group_is_closed_as_each_keyframe_resets_the_decoder():
    video = encode(moving_square(40), 5.0)
    with av.open(io.BytesIO(video)) as container:
        packets = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size and p.is_keyframe]
    instant_refresh = 5
    for packet in packets:
        kinds, at = set(), 0
        while at < len(packet):
            kinds.add(packet[at + 4] & 31)
            at += 4 + int.from_bytes(packet[at : at + 4], "big")
        assert instant_refresh in kinds


DIGEST = """
import hashlib, numpy as np
from videodiff.data.video.encode import encode
digest = hashlib.sha256()
for seed in range(6):
    frames = np.full((8, 32, 32, 3), 255, dtype=np.uint8)
    for t in range(8):
        frames[t, 3 + t : 12 + t, 2 * seed + t : 2 * seed + t + 9] = (255, 30 * seed, 0)
    digest.update(encode(frames, 5.0))
print(digest.hexdigest())
"""


def test_the_same_frames_give_the_same_bytes_whatever_lay_in_memory_before():
    found = set()
    for filling in ("0", "85", "200"):
        environment = {**os.environ, "MALLOC_PERTURB_": filling, "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_an_array_and_any_other_series_of_frames_give_the_same_bytes():
    assert encode(moving_square(), 5.0) == encode(iter(moving_square()), 5.0)


@pytest.mark.parametrize("fps", [5.0, 10.0, 23.976, 30000 / 1001, 60.0])
def test_the_frame_rate_is_kept(fps):
    info = probe(encode(moving_square(9), fps))
    assert info.fps == pytest.approx(fps, rel=1e-5)
    assert info.duration == pytest.approx(9 / fps, rel=1e-5)


def test_a_lower_crf_is_closer_to_the_frames():
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    near, far = (np.abs(decode(encode(frames, 5.0, crf=crf), range(6)).astype(int) - frames).mean() for crf in (4, 40))
    assert near < far


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 31, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_frames_that_cannot_be_encoded_are_an_error(frames):
    with pytest.raises(ValueError, match="expected"):
        encode(frames, 5.0)


@pytest.mark.parametrize("fps", [LEAST_FPS, 24000 / 1001, 240.0, MOST_FPS])
def test_every_rate_that_is_written_is_read_back_with_all_frames(fps):
    frames = moving_square(40)
    video = encode(frames, fps)
    found = probe(video)
    assert (found.frames, found.fps) == (40, pytest.approx(fps))
    shown = decode(video, range(40)).astype(int)
    assert np.abs(shown - frames.astype(int)).mean() < 5


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 0.99 * LEAST_FPS, 1.001 * MOST_FPS])
def test_a_frame_rate_that_is_none_is_an_error(fps):
    with pytest.raises(ValueError, match="fps: found"):
        encode(moving_square(), fps)


def test_frames_of_changing_size_are_an_error():
    with pytest.raises(ValueError, match=r"frame 1: found .* expected"):
        encode([np.zeros((32, 32, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)], 5.0)


def test_the_other_writer_of_these_tests_does_use_b_frames():
    with av.open(io.BytesIO(write_video(moving_square(20), bf="3"))) as container:
        kinds = {PictureType(frame.pict_type).name for frame in container.decode(video=0)}
    assert "B" in kinds
