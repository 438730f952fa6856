import io
import random
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.material.made_clips import moving_square, write_video
from videodiff.data.video import decode as room
from videodiff.data.video.decode import (
    DecodeError,
    decode,
    decode_into,
    probe,
    read_frames,
    resize,
)
from videodiff.data.video.encode import GOP, encode

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
WITH_B_FRAMES = write_video(moving_square(45), bf="3", g="20")


def all_frames(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 44), min_size=1, max_size=6))
def test_any_frames_in_any_order_are_those_of_a_full_decode(indices):
    if not hasattr(all_frames, "whole"):
        all_frames.whole = all_frames(WITH_B_FRAMES)
    assert np.array_equal(decode(WITH_B_FRAMES, indices), all_frames.whole[indices])


def test_frames_are_told_apart_by_their_content():
    frames, found = moving_square(30), decode(encode(moving_square(30), 5.0), [29, 0, 17])
    for index, image in zip([29, 0, 17], found, strict=True):
        assert np.abs(frames.astype(int) - image).mean(axis=(1, 2, 3)).argmin() == index


def test_frames_come_in_the_order_asked_for_and_as_often():
    whole = all_frames(WITH_B_FRAMES)
    assert np.array_equal(decode(WITH_B_FRAMES, [30, 3, 3]), whole[[30, 3, 3]])


def test_probe_tells_size_frames_rate_and_duration():
    info = probe(encode(moving_square(11, 48, 64), 10.0))
    assert (info.width, info.height, info.frames, info.fps) == (64, 48, 11, 10.0)
    assert info.duration == pytest.approx(1.1)


def test_a_stream_cut_inside_a_group_of_pictures_has_the_frames_that_can_be_decoded():
    """Recordings of broadcasts begin anywhere; what comes before the first keyframe cannot be shown."""
    whole = write_video(moving_square(45), container="mpegts", g="20")
    part = whole[len(whole) // 4 // 188 * 188 :]
    shown = all_frames(part)
    assert 20 < len(shown) < 30
    assert probe(part).frames == len(shown)
    assert np.array_equal(decode(part, [0, len(shown) - 1]), shown[[0, -1]])


@pytest.mark.parametrize("video", [b"", b"no video", bytes(5000), encode(moving_square(), 5.0)[:300]])
def test_what_is_no_video_is_a_decode_error(video):
    for read in (probe, lambda v: decode(v, [0]), lambda v: list(read_frames(v))):
        with pytest.raises(DecodeError):
            read(video)


def test_a_file_with_sound_only_is_a_decode_error():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(DecodeError, match="found no video stream"):
        probe(file.getvalue())


def test_a_frame_beyond_the_end_is_a_decode_error_that_says_how_many_there_are():
    with pytest.raises(DecodeError, match="found 8 frames, expected frame 8"):
        decode(encode(moving_square(8), 5.0), [0, 8])


@pytest.mark.parametrize("indices", [[], [-1]])
def test_no_frames_and_negative_ones_are_an_error(indices):
    with pytest.raises(ValueError, match="expected frame numbers"):
        decode(encode(moving_square(), 5.0), indices)


def test_a_damaged_frame_is_a_decode_error():
    video = bytearray(write_video(np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)))
    start = video.index(b"mdat")
    video[start + 20_000 : start + 20_400] = bytes(400)
    with pytest.raises(DecodeError, match=r"damaged|cannot be decoded"):
        list(read_frames(bytes(video)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70))
def test_resize_gives_the_size_asked_for_and_keeps_a_colour(h, w, height, width):
    frames = np.full((2, h, w, 3), (200, 30, 90), dtype=np.uint8)
    found = resize(frames, height, width)
    assert found.shape == (2, height, width, 3)
    assert np.abs(found.astype(int) - (200, 30, 90)).max() <= 1


def test_resize_crops_the_centre():
    frames = np.zeros((1, 20, 60, 3), dtype=np.uint8)
    frames[:, :, 20:40] = 255
    assert (resize(frames, 20, 20) == 255).all()


def test_resize_takes_the_mean_of_what_falls_into_a_pixel():
    frames = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    frames[:, :, ::4] = 255
    inner = resize(frames, 16, 16)[:, 1:-1, 1:-1]
    assert inner.min() > 255 / 4 - 20
    assert inner.max() < 255 / 4 + 20


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
@pytest.mark.parametrize("name", ["derived_vfr_sintel.mp4", "energon_sync_test.mp4", "torchcodec_av1_video.mkv"])
def test_real_clips_decode_as_pyav_decodes_them(name):
    video, wanted = (CLIPS / name).read_bytes(), [90, 3, 41]
    rate, found = probe(video).fps, {}
    for number, frame in enumerate(read_frames(video)):
        for n in wanted:
            # Of uneven times the one that is shown at a moment, else the one of this number.
            if number == n if "vfr" not in name else frame.time <= (n + 0.5) / rate:
                found[n] = frame.to_ndarray(format="rgb24")
    assert np.array_equal(decode(video, wanted), np.stack([found[n] for n in wanted]))


def test_frames_that_come_unevenly_keep_their_pace_in_training(tmp_path, monkeypatch):
    frames = moving_square(6, 96, 96)
    video = write_video(frames, times=[0, 1, 2, 12, 13, 14])
    info = probe(video)
    assert (info.frames, info.fps, info.duration) == (15, 25, 0.6)
    shown = [0, 1, *[2] * 10, 3, 4, 5]
    for found in (decode(video, range(15)), np.stack([image for _, image in room.decode_from_start(video, range(15))])):
        numbers = [np.abs(frames.astype(int) - image).mean(axis=(1, 2, 3)).argmin() for image in found]
        assert numbers == shown
    with pytest.raises(DecodeError, match="found 15 frames, expected frame 15"):
        decode(video, [15])


@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [("libvpx", "webm", {}), ("libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "4"}), ("mpeg4", "mp4", {}),
     ("mpeg4", "mp4", {"bf": "2"}), ("mjpeg", "matroska", {})],
)  # fmt: skip
def test_pictures_that_only_their_decoder_tells_keep_their_pace_too(codec, container, options):
    frames = moving_square(6, 96, 96)
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    video = write_video(frames, codec, pixels, container, times=[0, 1, 2, 12, 13, 14], b="2000000", **options)
    info = probe(video)
    assert (info.frames, round(info.fps)) == (15, 25)
    found = decode(video, range(15))
    numbers = [np.abs(frames.astype(int) - image).mean(axis=(1, 2, 3)).argmin() for image in found]
    assert numbers == [0, 1, *[2] * 10, 3, 4, 5]


@pytest.mark.parametrize(
    ("stays", "shown", "fps"),
    {
        "a pause": ([100, 100, 1000, 100, 100], [0, 1, *[2] * 10, 3, 4], 10),
        "a pause at the end": ([100, 100, 1000], [0, 1, *[2] * 10], 10),
        "two": ([50, 450], [0, *[1] * 9], 20),
        # As of any video whose last picture has no time of its own.
        "two, and a short last one": ([500, 50], [0, 1], 2),
        "even": ([100, 100, 100, 100], [0, 1, 2, 3], 10),
        "even in turn": ([60, 40, 60, 40, 60], [0, 1, 2, 3, 4], 20),
    }.values(),
)
def test_the_pictures_of_a_gif_stay_as_long_as_it_says(stays, shown, fps):
    file = io.BytesIO()
    first, *others = [Image.fromarray(np.full((32, 32, 3), 60 * place, np.uint8)) for place in range(len(stays))]
    first.save(file, "GIF", save_all=True, append_images=others, duration=stays)
    info = probe(file.getvalue())
    assert (info.frames, info.fps) == (len(shown), fps)
    found = decode(file.getvalue(), range(len(shown))).mean(axis=(1, 2, 3))
    assert found == pytest.approx([60 * place for place in shown], abs=3)


def edited(video: bytes, hidden: int) -> bytes:
    """Return a video whose edit list hides the first frames: cut without encoding anew, as editors do."""
    file, options = io.BytesIO(), {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format="mp4", options=options) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                # 25 frames a second in units of 1/12800 s.
                packet.pts, packet.dts, packet.stream = packet.pts - 512 * hidden, packet.dts - 512 * hidden, stream
                out.mux_one(packet)
    return file.getvalue()


def mistimed(video: bytes, container: str = "mp4", late: int = 0) -> bytes:
    """Return a video whose pictures are to be shown when they are decoded, or so many ticks later."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.pts, packet.stream = packet.dts + late, stream
                out.mux_one(packet)
    return file.getvalue()


def two_streams(small: bytes, large: bytes) -> bytes:
    """Return a file of both, the small one first."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(small)) as one,
        av.open(io.BytesIO(large)) as other,
        av.open(file, "w", format="mp4") as out,
    ):
        sources = [source.streams.video[0] for source in (one, other)]
        streams = [out.add_stream_from_template(source) for source in sources]
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.container.demux(source):
                if packet.size:
                    packet.stream = stream
                    out.mux_one(packet)
    return file.getvalue()


SQUARE = moving_square(70, 96, 96)
OPEN = {"bf": "3", "x264-params": "open-gop=1:keyint=15:min-keyint=15:scenecut=0:bframes=3:b-adapt=0"}
LONG = write_video(SQUARE, bf="3", g="250")
UNEVEN = np.cumsum(np.random.default_rng(0).choice([1, 1, 2, 5], 70)).tolist()
# And whether the times of its frames are known without decoding.
KINDS = {
    "canonical": (encode(SQUARE, 25.0), True),
    "one group of pictures": (LONG, True),
    "groups of three": (write_video(SQUARE, bf="2", g="3"), True),
    "variable rate": (write_video(SQUARE, bf="3", g="20", times=UNEVEN), True),
    "narrow": (WITH_B_FRAMES, True),
    "open groups of pictures": (write_video(SQUARE, **OPEN), True),
    "edit list": (edited(LONG, 37), True),
    "edit list over open groups": (edited(write_video(SQUARE, **OPEN), 37), False),
    "two streams": (two_streams(write_video(moving_square(70, 48, 48), g="20"), write_video(SQUARE, g="20")), True),
    "times of decoding": (mistimed(LONG), False),
    "times of decoding and a tick": (mistimed(LONG, late=1), False),
    "times of decoding in Matroska": (mistimed(LONG, "matroska"), False),
    "times of decoding in a transport stream": (mistimed(LONG, "mpegts"), False),
    "AVI": (write_video(SQUARE, container="avi", bf="3", g="20"), False),
    "interlaced": (write_video(SQUARE, flags="+ildct+ilme", g="20"), False),
    "MPEG-4 part 2": (write_video(SQUARE, "mpeg4", container="avi", g="20"), False),
    "no pictures out of order": (write_video(SQUARE, bf="0", g="20"), True),
    "av1": (write_video(SQUARE, "libsvtav1", g="20"), True),
    "hevc": (write_video(SQUARE, "libx265", container="matroska", g="20"), True),
    "vp9": (write_video(SQUARE, "libvpx-vp9", container="matroska", g="20"), True),
    "transport stream": (write_video(SQUARE, container="mpegts", bf="3", g="20"), True),
    "vp8": (write_video(SQUARE, "libvpx", container="matroska", g="20"), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_window_of_every_kind_of_video_is_that_of_a_full_decode(kind, monkeypatch):
    (video, indexed), dice, from_start = KINDS[kind], random.Random(0), []
    whole = np.stack([frame.to_ndarray(format="rgb24") for frame in read_frames(video)])
    monkeypatch.setattr(
        room, "decode_from_start", lambda *a, run=room.decode_from_start: from_start.append(a) or run(*a)
    )
    if kind == "variable rate":
        # Shown at these 25ths of a second; how long the last one stays the writer of the file had to guess.
        count = probe(video).frames
        assert 0 <= count - (UNEVEN[-1] - UNEVEN[0] + 1) < 5
        whole = whole[[sum(time <= UNEVEN[0] + tick for time in UNEVEN) - 1 for tick in range(count)]]
        assert probe(video).fps == 25
    assert probe(video).frames == len(whole)
    for _ in range(12):
        stride, start, count = dice.choice([1, 2, 4]), dice.randrange(len(whole) - 28), dice.choice([1, 8])
        window = range(start, start + count * stride, stride)
        assert np.array_equal(decode(video, window), whole[window])
    assert bool(from_start) != indexed


def test_only_the_groups_of_pictures_that_hold_the_frames_are_decoded(monkeypatch):
    seen, decoded = [], room.decoded
    monkeypatch.setattr(room, "decoded", lambda *a: (seen.append(frame.pts) or frame for frame in decoded(*a)))
    decode(encode(SQUARE, 25.0), [1, 62])
    assert len(seen) <= 2 + GOP


def test_frames_fill_the_memory_given_in_its_size():
    video, out = encode(SQUARE, 25.0), np.zeros((3, 40, 32, 3), dtype=np.uint8)
    decode_into(out, video, [4, 0, 9])
    assert np.abs(out.astype(int) - resize(SQUARE[[4, 0, 9]], 40, 32)).mean() < 6
    whole = np.zeros((2, 96, 96, 3), dtype=np.uint8)
    decode_into(whole, video, [4, 0])
    assert np.array_equal(whole, decode(video, [4, 0]))
    with pytest.raises(DecodeError, match="found 70 frames, expected frame 70"):
        decode_into(out, video, [4, 0, 70])
