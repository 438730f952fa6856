"""What of strangers' files is opened, and what is refused before anything of it is decoded."""

from __future__ import annotations

import ast
import io
import resource
import socket
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from data_prep.cut.footage import FitPolicy, fit_video
from data_prep.cut.spans import read_timeline
from tests.material.made_clips import moving_square, write_video
from videodiff.data.video.decode import DecodeError, decode, probe
from videodiff.data.video.info import MAX_PIXELS, OPTIONS, best_stream, open_video

ROOT = Path(__file__).parents[3]
# Where `av.open` reads what is nobody's but ours, or writes.
WRITERS = {"videodiff/data/video/encode.py", "data_prep/cut/audio.py", "data_prep/cut/animated.py"}
VIDEO = write_video(moving_square(8, 64, 64))


def calls(path: Path) -> set[str]:
    """Return the dotted names of everything a file calls."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


def test_nothing_but_open_video_opens_what_strangers_wrote():
    files = [path for room in ("videodiff", "data_prep") for path in (ROOT / room).rglob("*.py")]
    openers = {
        "av.open": {"videodiff/data/video/info.py", *WRITERS},
        # The header alone, and animated WebP, each of the formats that it names.
        "Image.open": {"videodiff/data/video/info.py", "data_prep/cut/animated.py"},
        # After `read_header` has found an mp4, and after `why_not` has found nothing against it.
        "decord.VideoReader": {"data_prep/cut/footage.py", "videodiff/data/video/by_decord.py"},
    }
    for path in files:
        name, found = path.relative_to(ROOT).as_posix(), calls(path)
        for opener, places in openers.items():
            assert opener not in found or name in places, f"{name} calls {opener}, expected open_video"
        others = {"VideoCapture", "imread", "imdecode", "VideoReader", "imopen", "open_video_stream", "read_video"}
        assert not {call.rpartition(".")[2] for call in found - set(openers)} & others, f"{name}: expected open_video"
    for path in WRITERS:
        opened = [
            node
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "av.open"
        ]
        assert all(isinstance(call.args[1], ast.Constant) and call.args[1].value == "w" for call in opened), path


def lists(folder: Path) -> dict[str, bytes]:
    """Return files that name another one in the folder, which is a video, or a port."""
    (folder / "secret.mp4").write_bytes(VIDEO)
    stream = write_video(moving_square(8, 64, 64), container="mpegts")
    (folder / "secret.ts").write_bytes(stream)
    name = str(folder / "secret.mp4")
    return {
        "ffconcat": f"ffconcat version 1.0\nfile {name}\n".encode(),
        "relative ffconcat": b"ffconcat version 1.0\nfile secret.mp4\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{folder / 'secret.ts'}\n#EXT-X-ENDLIST\n".encode(),
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        f'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
        f'<AdaptationSet mimeType="video/mp4"><Representation id="a" bandwidth="1"><BaseURL>{name}</BaseURL>'
        f"</Representation></AdaptationSet></Period></MPD>".encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{name}"/></entry></asx>'.encode(),
        "ram": f"file://{name}\n".encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{name}"/></svg>'.encode(),
    }


@pytest.mark.parametrize("kind", ["ffconcat", "relative ffconcat", "hls", "dash", "asx", "ram", "svg"])
def test_a_list_of_other_files_is_refused_whatever_its_name(kind, tmp_path, monkeypatch):
    data = lists(tmp_path)[kind]
    path = tmp_path / f"{kind}.mp4"
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for read in (probe, lambda data: decode(data, [0]), lambda data: fit_video(data, FitPolicy(720, 18))):
        with pytest.raises(DecodeError) as found:
            read(data)
        assert "\n" not in str(found.value)
    with pytest.raises(DecodeError):
        read_timeline(path)


def test_a_session_description_opens_no_port(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1] // 2 * 2 + 2
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0", f"m=video {port} RTP/AVP 96"]
    data = "\r\n".join([*lines, "a=rtpmap:96 H264/90000", ""]).encode()
    with pytest.raises(DecodeError, match="no playlist or session description"):
        probe(data)
    ports = [int(line.split()[1].rpartition(":")[2], 16) for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    assert port not in ports


def box(name: bytes, data: bytes) -> bytes:
    """Return a box of an mp4."""
    return struct.pack(">I4s", 8 + len(data), name) + data


def inside(data: bytes, path: list[bytes], change) -> bytes:
    """Return boxes of which the one at this path is another."""
    out, at = b"", 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + size]
        if name == path[0]:
            body = change(body) if len(path) == 1 else inside(body, path[1:], change)
        out += box(name, body)
        at += size
    return out


def test_a_movie_whose_pictures_lie_in_another_file_shows_none_of_them(tmp_path, monkeypatch):
    """As QuickTime makes reference movies: an alias in place of the data, here by its absolute and relative path."""
    movie = write_video(moving_square(8, 64, 64), container="mov")
    (tmp_path / "secret.mov").write_bytes(movie)
    monkeypatch.chdir(tmp_path)
    absolute = str(tmp_path / "secret.mov").encode()
    alias = bytes(4) + struct.pack(">hh", 0, 2) + bytes(2) + bytes([3]) + b"vol".ljust(27, b"\0") + bytes(12)
    alias += bytes([10]) + b"secret.mov".ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 0, 1) + bytes(16)
    for kind, text in ((2, absolute), (18, absolute), (14, b"secret.mov")):
        alias += struct.pack(">hH", kind, len(text)) + text + bytes(len(text) % 2)
    entry = box(b"alis", bytes(4) + alias + struct.pack(">hH", -1, 0))
    path = [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"]
    changed = inside(movie, path, lambda body: body[:8] + entry)
    at = changed.index(b"mdat") + 4
    emptied = changed[:at] + bytes(len(movie) - movie.index(b"mdat") - 4)[: changed.index(b"moov") - 4 - at]
    emptied += changed[changed.index(b"moov") - 4 :]
    assert len(emptied) == len(changed)
    with pytest.raises(DecodeError):
        decode(emptied, [0])


def png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def claims(width: int, height: int) -> dict[str, bytes]:
    """Return small files that say their pictures are of this size."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    jpeg, bitmap = bytearray(file.getvalue()), io.BytesIO()
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", height, width)
    Image.new("RGB", (16, 16)).save(bitmap, "BMP")
    bmp = bytearray(bitmap.getvalue())
    bmp[18:26] = struct.pack("<ii", width, height)
    mov = bytearray(write_video(moving_square(2, 32, 32), "qtrle", "rgb24", "mov"))
    entry = mov.index(b"rle ") + 4 + 24
    mov[entry : entry + 4] = struct.pack(">HH", width, height)
    raw = io.BytesIO()
    Image.new("RGB", (16, 16)).save(raw, "PPM")
    ppm = raw.getvalue().replace(b"16 16", f"{width} {height}".encode())
    return {"png": png(width, height), "jpeg": bytes(jpeg), "bmp": bytes(bmp), "mov": bytes(mov), "ppm": ppm}


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "mov", "ppm"])
@pytest.mark.parametrize("size", [(60_000, 60_000), (15_000, 15_000), (8192, 8194)])
def test_a_picture_that_says_it_is_too_large_is_refused_before_it_is_decoded(kind, size):
    data = claims(*size)[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (probe, lambda data: decode(data, [0]), lambda data: fit_video(data, FitPolicy(720, 18))):
        with pytest.raises(DecodeError, match=r"pixels|too large"):
            read(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_a_stream_that_grows_too_large_is_refused_where_it_does(monkeypatch):
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
        for number, side in enumerate((64, 128)):
            picture = io.BytesIO()
            Image.new("RGB", (side, side)).save(picture, "JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base = Fraction(1, 25)
            out.mux_one(packet)
    assert decode(file.getvalue(), [1]).shape == (1, 128, 128, 3)
    monkeypatch.setitem(OPTIONS, "max_pixels", "10000")
    assert decode(file.getvalue(), [0]).shape == (1, 64, 64, 3)
    with pytest.raises(DecodeError):
        decode(file.getvalue(), [1])


def test_the_largest_pictures_that_are_taken_are_of_8192_pixels_square():
    assert MAX_PIXELS == 8192**2
    image = io.BytesIO()
    Image.new("L", (8192, 8192)).save(image, "PNG", compress_level=1)
    with open_video(image.getvalue()) as container:
        assert container.streams.video[0].codec_context.width == 8192


def test_an_empty_file_and_one_of_sound_are_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(DecodeError, match="empty file"), open_video(tmp_path / "empty.mp4"):
        pass
    wave = b"RIFF" + struct.pack("<I", 1036) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    with pytest.raises(DecodeError, match="found no video or picture that is taken"):
        probe(wave + b"data" + struct.pack("<I", 1000) + bytes(1000))


def test_a_tile_of_a_picture_is_not_taken_for_the_picture():
    """Nothing here writes pictures in tiles: the mark is that of ffmpeg's reader of HEIF."""
    tile = SimpleNamespace(codec_context=object(), disposition=Disposition.dependent)
    with pytest.raises(DecodeError, match="cut into tiles"):
        best_stream(SimpleNamespace(streams=SimpleNamespace(best=lambda kind: tile)))


def test_the_cover_of_a_song_is_no_video():
    file, sound = io.BytesIO(), av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
    sound.sample_rate = 8000
    with av.open(file, "w", format="mp4") as song:
        voice, cover = song.add_stream("aac", rate=8000), song.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in [*cover.encode(picture), *cover.encode(None), *voice.encode(sound), *voice.encode(None)]:
            song.mux(packet)
    with pytest.raises(DecodeError, match="found no video but an attached picture"):
        probe(file.getvalue())


def test_a_file_on_disk_is_read_as_the_same_bytes_in_memory_are(tmp_path):
    path = tmp_path / "secret%03d.mp4"
    path.write_bytes(VIDEO)
    for source in (path, str(path), VIDEO):
        with open_video(source) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.array_equal(frames, decode(VIDEO, range(8)))
