"""One geometry for every path: what is turned, mirrored or squeezed in the file is upright and square for all.

The pictures are four colours, one a corner, so that each of the eight orientations looks different.
"""

from __future__ import annotations

import io
import math
import struct
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.footage import FitPolicy, fit_video
from data_prep.cut.spans import Span
from tests.material.made_clips import write_video
from videodiff.data.samples.indexing import index_tars
from videodiff.data.video.decode import DecodeError, decode, decode_into, probe
from videodiff.data.video.geometry import (
    EXIF,
    UPRIGHT,
    Display,
    even_size,
    orientation_of_exif,
    orientation_of_matrix,
    same_shape,
)

CORNERS = np.array([[(230, 30, 30), (30, 200, 30)], [(30, 30, 230), (230, 230, 230)]], np.uint8)


def corners(height: int = 48, width: int = 64) -> np.ndarray:
    """Return uint8 `h w c` of four colours."""
    return np.repeat(np.repeat(CORNERS, height // 2, 0), width // 2, 1)


def colours(image: np.ndarray) -> np.ndarray:
    """Return the colours of the four corners, `2 2 c`, away from their edges."""
    rows, columns = (np.array([1, 3]) * side // 4 for side in image.shape[:2])
    return image[np.ix_(rows, columns)].astype(int)


def transposed(image: np.ndarray, exif: int) -> np.ndarray:
    """Return an image as Pillow shows one with this EXIF orientation."""
    picture = Image.fromarray(image)
    picture.getexif()[0x0112] = exif
    return np.asarray(ImageOps.exif_transpose(picture))


# The matrices of ISO 14496-12 for the orientations of EXIF, a b c d: a point (p, q) goes to (ap + cq, bp + dq).
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def matrix(a: float, b: float, c: float, d: float, order: str = "=") -> bytes:
    values = [round(65536 * value) for value in (a, b, c, d)]
    return struct.pack(f"{order}9i", values[0], values[1], 0, values[2], values[3], 0, 0, 0, 1 << 30)


def displayed(video: bytes, *abcd: float) -> bytes:
    """Return an mp4 whose track header has this matrix."""
    at = video.index(b"tkhd") + 44
    return video[:at] + matrix(*abcd, order=">") + video[at + 36 :]


@pytest.mark.parametrize("exif", range(1, 9))
def test_an_orientation_is_what_pillow_makes_of_it(exif):
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for found in (orientation_of_exif(exif), orientation_of_matrix(matrix(*MATRICES[exif]))):
        assert found == EXIF[exif - 1]
        assert np.array_equal(found.turn(image), transposed(image, exif))
        assert Display(orientation=found).size(7, 5) == transposed(image, exif).shape[1::-1]


def test_an_orientation_is_told_as_exif_numbers_it():
    turns = {3: "rotated by 180 degrees", 6: "rotated by 90 degrees", 8: "rotated by 270 degrees"}
    for exif in range(2, 9):
        assert str(EXIF[exif - 1]) == turns.get(exif, f"mirrored (EXIF {exif})")


@given(st.sampled_from(sorted(MATRICES)), st.floats(-0.9, 0.9), st.floats(0.01, 30), st.floats(0.01, 30))
def test_a_matrix_may_be_scaled_and_a_degree_off(exif, degrees, wide, high):
    turn = np.array([[math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))]] * 2)
    turn[1] = turn[0, ::-1] * (-1, 1)
    a, b, c, d = MATRICES[exif]
    scale = min(wide, high)
    (a, c), (b, d) = (turn @ np.array([[a, c], [b, d]]) * scale).tolist()
    assert orientation_of_matrix(matrix(a, b, c, d)) == EXIF[exif - 1]


@pytest.mark.parametrize("degrees", [5, 30, 45, 100, 225])
def test_another_angle_is_refused(degrees):
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    with pytest.raises(DecodeError, match="no multiple of 90 degrees"):
        orientation_of_matrix(matrix(cosine, sine, -sine, cosine))
    with pytest.raises(DecodeError, match="no multiple of 90 degrees"):
        probe(displayed(write_video(np.stack([corners()] * 2)), cosine, sine, -sine, cosine))


@pytest.mark.parametrize("said", [None, 0, 9, "6", b"\x06", -1, 6.0])
def test_what_is_no_orientation_turns_nothing(said):
    assert orientation_of_exif(said) == UPRIGHT
    assert orientation_of_matrix(bytes(36)) == UPRIGHT


@given(st.integers(1, 8000), st.integers(1, 8000), st.integers(2, 4000))
def test_even_sizes_are_the_nearest_and_never_larger(width, height, short_side):
    found = even_size((width, height), short_side)
    scale = min(1, short_side / min(width, height))
    for side, made in zip((width, height), found, strict=True):
        assert made % 2 == 0
        assert made <= max(side, 2)
        assert abs(made - side * scale) <= 2


@pytest.mark.parametrize(
    ("ratio", "size", "shown"),
    [
        (Fraction(17, 16), (192, 108), (204, 108)),
        (Fraction(16, 15), (192, 108), (204, 108)),
        (Fraction(8, 9), (720, 480), (640, 480)),
        (Fraction(64, 45), (720, 576), (1024, 576)),
        (Fraction(1280, 1281), (427, 241), (427, 241)),
        (Fraction(1, 10_000), (64, 48), (2, 48)),
    ],
)
def test_square_pixels_keep_the_height(ratio, size, shown):
    assert Display(ratio).size(*size) == shown
    assert Display(ratio, EXIF[5]).size(*size) == shown[::-1]


def test_a_picture_that_would_be_shown_too_large_is_refused():
    with pytest.raises(DecodeError, match="expected at most"):
        Display(Fraction(10_000)).size(1920, 1080)


def test_shapes_are_the_same_up_to_rounding():
    assert same_shape((1280, 720), (854, 480))
    assert same_shape((640, 360), (427, 240))
    assert not same_shape((1024, 576), (768, 576))


def shown_by_all(video: bytes, tmp_path) -> dict[str, np.ndarray]:
    """Return the second frame as each path shows it: reading as it is, packed, prepared."""
    info = probe(video)
    out = np.empty((1, info.height, info.width, 3), np.uint8)
    decode_into(out, video, [1])
    (tmp_path / "a.mp4").write_bytes(video)
    ((_, clip),) = make_clips(tmp_path / "a.mp4", [Span(0, 0.12)], EncodePolicy(crf=1), crop=False, scored=False)
    assert isinstance(clip, ReadyClip), clip
    packed, packed_info, _ = fit_video(video, FitPolicy(720, 1))[:3]
    assert probe(packed) == packed_info
    assert probe(clip.video) == clip.info
    read = {
        "decode": decode(video, [1]),
        "decode_into": out,
        "pack": decode(packed, [1]),
        "prep": decode(clip.video, [1]),
    }
    return {name: frames[0] for name, frames in read.items()}


@pytest.mark.parametrize("exif", range(1, 9))
def test_every_path_shows_the_same_of_every_matrix(exif, tmp_path):
    video = displayed(write_video(np.stack([corners()] * 3), crf="1"), *MATRICES[exif])
    expected = transposed(corners(), exif)
    assert (probe(video).height, probe(video).width) == expected.shape[:2]
    for path, image in shown_by_all(video, tmp_path).items():
        assert image.shape == expected.shape, path
        assert np.abs(colours(image) - colours(expected)).max() <= 6, path


def squeezed(ratio: Fraction, container: str = "mp4", size: tuple[int, int] = (108, 192), count: int = 4) -> bytes:
    """Return a video whose pixels are so much wider than high, as the stream itself says."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1", "g": "2"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        for _ in range(count):
            frame = av.VideoFrame.from_ndarray(corners(*size), format="rgb24").reformat(format="yuv420p")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("container", ["mp4", "mpegts", "matroska"])
@pytest.mark.parametrize(("ratio", "size"), [(Fraction(17, 16), (204, 108)), (Fraction(1, 2), (96, 108))])
def test_every_path_shows_square_pixels(container, ratio, size, tmp_path):
    video = squeezed(ratio, container)
    assert (probe(video).width, probe(video).height) == size
    for path, image in shown_by_all(video, tmp_path).items():
        assert image.shape[1::-1] == size, path
        assert np.abs(colours(image) - CORNERS).max() <= 6, path


def test_turned_and_squeezed_pixels_are_square_after_the_turn(tmp_path):
    video = displayed(squeezed(Fraction(17, 16)), *MATRICES[6])
    for path, image in shown_by_all(video, tmp_path).items():
        assert image.shape == (204, 108, 3), path
        assert np.abs(colours(image) - colours(transposed(corners(), 6))).max() <= 6, path


def joined(*parts: bytes) -> bytes:
    """Return transport streams one after the other, each later by 4 frames than the one before."""
    file = io.BytesIO()
    for number, part in enumerate(parts):
        piece = io.BytesIO()
        with av.open(io.BytesIO(part)) as source, av.open(piece, "w", format="mpegts") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.pts, packet.dts = (time + number * 4 * 3600 for time in (packet.pts, packet.dts))
                    packet.stream = stream
                    out.mux_one(packet)
        file.write(piece.getvalue())
    return file.getvalue()


def test_pixels_that_change_their_shape_are_refused_in_one_clip_and_right_on_either_side(tmp_path):
    video = joined(squeezed(Fraction(1), "mpegts"), squeezed(Fraction(4, 3), "mpegts"))
    assert probe(video).frames == 8
    assert decode(video, [0, 1]).shape[1:3] == (108, 192)
    assert decode(video, [6, 7]).shape[1:3] == (108, 256)
    with pytest.raises(DecodeError, match="found frames shown as 192 x 108 and 256 x 108, expected one shape"):
        decode(video, [0, 7])
    with pytest.raises(DecodeError, match="expected one shape"):
        fit_video(video, FitPolicy(720, 18))
    (tmp_path / "a.ts").write_bytes(video)
    found = dict(
        make_clips(tmp_path / "a.ts", [Span(0, 0.08), Span(0, 0.3), Span(0.2, 0.3)], EncodePolicy(), False, False)
    )
    assert (found[0].info.width, found[2].info.width) == (192, 256)
    assert str(found[1]) == "found frames shown as 192 x 108 and 256 x 108, expected one shape"


def test_pictures_that_change_their_size_alone_are_scaled_to_the_first_one_asked_for():
    video = joined(squeezed(Fraction(1), "mpegts"), squeezed(Fraction(1), "mpegts", (54, 96)))
    for numbers, size in ([0, 7], (108, 192)), ([6, 7], (54, 96)):
        found = decode(video, numbers)
        assert found.shape == (2, *size, 3)
        for image in found:
            assert np.abs(colours(image) - CORNERS).max() <= 6
    packed, info, _ = fit_video(video, FitPolicy(720, 1))[:3]
    assert (info.width, info.height, info.frames) == (192, 108, 8)
    assert np.abs(colours(decode(packed, [7])[0]) - CORNERS).max() <= 8


def still(kind: str, exif: int) -> bytes:
    """Return a picture of the corners with a note of how to turn it."""
    file, notes = io.BytesIO(), Image.Exif()
    notes[0x0112] = exif
    Image.fromarray(corners()).save(
        file, kind, exif=notes, **({"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {})
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("exif", range(1, 9))
def test_every_path_shows_a_still_picture_as_pillow_does(kind, exif):
    picture = still(kind, exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(picture))).convert("RGB"))
    assert (probe(picture).height, probe(picture).width, probe(picture).frames) == (*expected.shape[:2], 1)
    out = np.empty((1, *expected.shape), np.uint8)
    decode_into(out, picture, [0])
    packed, info, _ = fit_video(picture, FitPolicy(720, 1))[:3]
    assert (info.height, info.width) == expected.shape[:2]
    for image in (decode(picture, [0])[0], out[0], decode(packed, [0])[0]):
        assert np.abs(colours(image) - colours(expected)).max() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_resolution_of_a_printer_squeezes_no_picture(kind):
    file = io.BytesIO()
    Image.fromarray(corners()).save(file, kind, dpi=(100, 200))
    picture = file.getvalue()
    _, info, _ = fit_video(picture, FitPolicy(720, 18))[:3]
    assert decode(picture, [0]).shape == (1, 48, 64, 3)
    assert (probe(picture).width, info.width, info.height) == (64, 64, 48)


def test_the_manifest_of_others_tars_has_sizes_as_shown(tmp_path):
    turned = displayed(write_video(np.stack([corners(108, 192)] * 3)), *MATRICES[6])
    members = {
        "a-turned.mp4": turned,
        "b-square.mp4": squeezed(Fraction(17, 16)),
        "c-still.jpg": still("JPEG", 7),
        "d-angle.mp4": displayed(turned, 0.7, 0.7, -0.7, 0.7),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    manifest, unusable = index_tars(str(tmp_path), workers=1)
    rows = [manifest.row(number) for number in range(len(manifest))]
    assert [(row["key"], row["width"], row["height"]) for row in rows] == [
        ("a-turned", 108, 192), ("b-square", 204, 108), ("c-still", 48, 64),
    ]  # fmt: skip
    assert [entry.name for entry in unusable] == ["d-angle"]
    assert "no multiple of 90 degrees" in unusable[0].reason
