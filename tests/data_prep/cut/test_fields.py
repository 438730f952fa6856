import io
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from data_prep.cut.footage import FitPolicy, first_frame, fit_video
from data_prep.cut.spans import Shown, Span, cut, read_timeline
from tests.material.made_clips import moving_square, write_video
from tests.material.numbered_clips import numbered, read_number
from videodiff.data.video.by_decord import frames_by_decord
from videodiff.data.video.decode import decode, probe
from videodiff.data.video.fields import Fields
from videodiff.data.video.info import DecodeError

# Width, height and number of the pictures that are made here, of 25 a second.
WIDTH, HEIGHT, COUNT = 64, 64, 10


def number(value: int) -> str:
    """Return a number in Exp-Golomb code."""
    return (code := f"{value + 1:b}").rjust(2 * len(code) - 1, "0")


def unit(kind: int, bits: str) -> bytes:
    """Return a unit of H.264 with its mark and its end, in which no other mark is."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data = bytearray()
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if data[-2:] == b"\0\0" and byte < 4:
            data.append(3)
        data.append(byte)
    return b"\0\0\0\1" + bytes([1 << 5 | kind]) + bytes(data)


def sets() -> bytes:
    """Return the parameters of interlaced pictures: 4 bits for the number of a frame, 8 for the order of a field."""
    size = number(WIDTH // 16 - 1) + number(HEIGHT // 32 - 1)
    sequence = f"{77:08b}{0:08b}{30:08b}" + number(0) + number(0) + number(0) + number(4) + number(1) + "0" + size
    picture = number(0) * 2 + "00" + number(0) * 3 + "000" + number(0) * 3 + "000"
    return unit(7, sequence + "00100") + unit(8, picture)


def field(luma: np.ndarray, frame: int, bottom: bool) -> bytes:
    """Return a field, uint8 `h w`, as samples that are not compressed."""
    first = frame == 0 and not bottom
    bits = number(0) + number(7) + number(0) + f"{frame % 16:04b}1{bottom:b}" + number(0) * first
    bits += f"{2 * frame + bottom:08b}" + ("00" if first else "0") + number(0)
    for top in range(0, len(luma), 16):
        for left in range(0, WIDTH, 16):
            bits += number(25)
            bits += "0" * (-len(bits) % 8)
            samples = [*luma[top : top + 16, left : left + 16].ravel().tolist(), *[128] * 128]
            bits += "".join(f"{sample:08b}" for sample in samples)
    return unit(5 if first else 1, bits)


def by_fields() -> list[bytes]:
    """Return pictures coded field by field: rows of picture n are 16 + 20 n and, between these, 5 more."""
    found = []
    for frame in range(COUNT):
        half = np.full((HEIGHT // 2, WIDTH), 16 + 20 * frame, np.uint8)
        found += [field(half, frame, False), field(half + 5, frame, True)]
    return [sets() + found[0], *found[1:]]


def in_container(kind: str, together: int) -> bytes:
    """Return the pictures in a container, with so many fields stored as one."""
    units, file, unit_of_time, each = by_fields(), io.BytesIO(), Fraction(1, 90_000), 1800
    with av.open(io.BytesIO(b"".join(units)), format="h264") as source, av.open(file, "w", format=kind) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for place in range(0, len(units), together):
            packet = av.Packet(b"".join(units[place : place + together]))
            packet.stream, packet.time_base, packet.is_keyframe = stream, unit_of_time, place == 0
            packet.pts, packet.dts, packet.duration = place * each, place * each, together * each
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("kind", ["mpegts", "mp4", "matroska"])
def test_two_fields_of_one_picture_are_one_frame(kind, together):
    video = in_container(kind, together)
    frames = decode(video, range(COUNT))
    # BT.601: 16 is black, 235 is white.
    levels = (20 * np.arange(COUNT)[:, None] + (0, 5)) * 255 / 219
    np.testing.assert_allclose(frames[:, :2, 0, 0], levels, atol=1.5)
    info, timeline, fit = probe(video), read_timeline(video), fit_video(video, FitPolicy())
    assert (info.frames, info.fps, info.width, info.height) == (COUNT, 25, WIDTH, HEIGHT)
    assert timeline.times.tolist() == [40_000 * number for number in range(COUNT)]
    assert (timeline.end, timeline.fps, timeline.usual) == (400_000, 25, 25)
    assert (fit.info.frames, fit.info.fps) == (COUNT, 25)


def test_a_span_of_fields_has_its_frames(tmp_path):
    path = tmp_path / "television.ts"
    path.write_bytes(in_container("mpegts", 1))
    found = [item for _, item in cut(path, [Span(0.12, 0.28)])]
    assert found[-1] is None
    assert [item.time for item in found if isinstance(item, Shown)] == [120_000, 160_000, 200_000, 240_000]


@pytest.mark.parametrize("options", [{"x264-params": "interlaced=1"}, {"x264-params": "cqm=jvt:bframes=3"}])
def test_pictures_coded_whole_lose_none(options):
    for container in ("mp4", "mpegts"):
        video = write_video(numbered(20), container=container, profile="high", **options)
        with av.open(io.BytesIO(video)) as source:
            stream = source.streams.video[0]
            second = Fields(stream)
            assert [second(packet) for packet in source.demux(stream) if packet.size] == [False] * 20
        assert probe(video).frames == 20


@pytest.mark.parametrize(("kind", "codec"), [("h264", "libx264"), ("hevc", "libx265")])
def test_a_stream_without_a_container_has_the_rate_of_its_header(tmp_path, kind, codec):
    source, path = tmp_path / "numbered.mp4", tmp_path / f"camera.{kind}"
    source.write_bytes(write_video(numbered(20), g="8"))
    slower = ["-vf", "setpts=2.5*PTS", "-r", "10", "-c:v", codec, "-bf", "2", "-g", "8", "-f", kind]
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, *slower, path], check=True, capture_output=True)
    video = path.read_bytes()
    fit = fit_video(video, FitPolicy())
    assert (fit.info.frames, fit.info.fps, probe(video).fps) == (20, 10, 10)
    assert [read_number(frame) for frame in decode(fit.video, range(20))] == list(range(20))
    with pytest.raises(DecodeError, match=f"its container is {kind}, which has no index of frames"):
        list(frames_by_decord(video, [3]))
    found = [item for _, item in cut(path, [Span(0.5, 1.2)])]
    assert [read_number(item.frame.to_ndarray(format="rgb24")) for item in found[:-1]] == [5, 6, 7, 8, 9, 10, 11]
    assert found[-1] is None


@pytest.mark.parametrize("kind", ["mp4", "mpegts", "matroska", "hevc"])
def test_hevc_by_fields_is_refused_by_every_reader(tmp_path, kind):
    whole, path = tmp_path / "whole.mp4", tmp_path / "fields"
    whole.write_bytes(write_video(moving_square(8, HEIGHT, WIDTH)))
    coded = ["-vf", "separatefields", "-c:v", "libx265", "-x265-params", "interlace=tff:log-level=none"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", whole, *coded, "-f", kind, path], check=True)
    video, told = path.read_bytes(), rf"HEVC coded by fields, {WIDTH} x {HEIGHT // 2} is half a picture"
    readers = {
        "probe": lambda: probe(video),
        "decode": lambda: decode(video, [3]),
        "decord": lambda: list(frames_by_decord(video, [3])),
        "pack": lambda: first_frame(video),
        "prep": lambda: list(cut(path, [Span(0.0, 0.2)])),
    }
    for name, read in readers.items():
        with pytest.raises(DecodeError, match=told):
            raise AssertionError(f"{name} takes it: {read()}")
    # What the message advises makes whole frames of it.
    advised = ["-vf", "weave=top", "-f", "mp4", tmp_path / "woven.mp4"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", path, *advised], check=True)
    info = probe((tmp_path / "woven.mp4").read_bytes())
    assert (info.width, info.height, info.frames) == (WIDTH, HEIGHT, 8)
