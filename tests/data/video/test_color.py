"""High dynamic range and transparency, against the formulas of the standards, written down here once more."""

from __future__ import annotations

import gc
import io
import json
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from data_prep.cut.clips import make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.footage import FitPolicy, fit_video
from data_prep.cut.spans import Span
from tests.material.made_clips import share_the_core, untold, write_video
from tests.material.packing import pack
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import read_sample
from videodiff.data.video.color import compress, hlg_light, pq_light, to_sdr
from videodiff.data.video.decode import decode, decode_into, probe, read_frames

# Bars of 75 %, as monitors are lined up by, the same darker, greys, and white.
BARS = np.array([(r, g, b) for g in (0, 1) for r in (0, 1) for b in (0, 1)], float)
PATCHES = np.concatenate([0.75 * BARS, 0.4 * BARS, np.linspace(0.1, 0.8, 8)[:, None].repeat(3, 1)]).reshape(3, 8, 3)
TO_BT2020 = np.array([[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]])
TAGS = {"pq": 16, "hlg": 18, "sdr": 1}


def pq_signal(nits: np.ndarray) -> np.ndarray:
    """Return the PQ signal of a luminance: the inverse EOTF of ST 2084."""
    power = (np.maximum(nits, 0) / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_signal(nits: np.ndarray) -> np.ndarray:
    """Return the HLG signal of light on a display of 1000 cd/m2: the inverse OOTF, then the OETF of BT.2100."""
    luminance = np.maximum(nits @ [0.2627, 0.6780, 0.0593], 1e-9)[..., None]
    scene = np.maximum(nits, 0) / 1000 * (luminance / 1000) ** (-0.2 / 1.2)
    above = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), above)


def signal(sdr: np.ndarray, transfer: str, gamma: float = 2.2) -> np.ndarray:
    """Return the HDR signal, 0 to 1, of ordinary RGB, 0 to 1, whose white is to have 203 cd/m2."""
    nits = 203 * sdr**gamma @ TO_BT2020.T
    return (pq_signal if transfer == "pq" else hlg_signal)(nits)


def patches(values: np.ndarray, side: int = 16) -> np.ndarray:
    """Return an image of squares of these colours, `rows columns c`."""
    return values.repeat(side, 0).repeat(side, 1)


def colours(image: np.ndarray) -> np.ndarray:
    """Return the colour in the middle of each square, `rows columns c`."""
    rows, columns = PATCHES.shape[:2]
    y, x = (
        (np.arange(count) + 0.5) * side / count for count, side in ((rows, image.shape[0]), (columns, image.shape[1]))
    )
    return image[np.ix_(y.astype(int), x.astype(int))].astype(int)


# Light in RGB of BT.709 to that of Display P3, from the chromaticities of both (SMPTE EG 432-1, white D65).
TO_P3 = np.array([[0.822462, 0.177538, 0.0], [0.033194, 0.966806, 0.0], [0.017083, 0.072397, 0.910520]])
GAMUTS = {"bt2020": (9, TO_BT2020), "p3": (12, TO_P3)}


@pytest.mark.parametrize("name", GAMUTS)
@pytest.mark.parametrize(("codec", "container"), [("libx265", "mp4"), ("libsvtav1", "mp4")])
def test_wide_colours_of_ordinary_range_become_those_of_bt709_on_every_path(name, codec, container, tmp_path):
    primaries, matrix = GAMUTS[name]
    coded = (patches(PATCHES) ** 2.2 @ matrix.T) ** (1 / 2.2)
    video = hdr_video(coded, "sdr", codec, container, primaries)
    for path, image in shown_by_all(video, tmp_path).items():
        off = np.abs(colours(image) - 255 * PATCHES)
        assert off.max() < 9, path
        assert off.mean() < 2, path
    # What has no other colour than grey keeps its level, and without the conversion the others are far off.
    assert np.abs(colours(255 * coded) - 255 * PATCHES).max() > 20
    ((_, clip),) = make_clips(tmp_path / "a.mp4", [Span(0, 0.04)], EncodePolicy(crf=1), crop=False)
    assert (clip.notes, clip.scores["hdr"]) == ({"gamut": name}, 0)
    assert fit_video(video, FitPolicy()).reason


def display_p3() -> bytes:
    """Return an ICC profile of Display P3: its primaries as seen under D50, and the curve of sRGB."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, xyz in {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
                     b"bXYZ": (0.15710, 0.06657, 0.78407)}.items():  # fmt: skip
        entry = made.index(tag, 128)
        place = int.from_bytes(made[entry + 4 : entry + 8], "big") + 8
        made[place : place + 12] = b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in xyz)
    return bytes(made)


def srgb_light(signal: np.ndarray) -> np.ndarray:
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def srgb_signal(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "APNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_a_picture_of_another_profile_is_shown_in_srgb(kind, tmp_path):
    coded = srgb_signal(srgb_light(patches(PATCHES)) @ TO_P3.T)
    image = Image.fromarray(np.round(255 * coded).astype(np.uint8))
    file, how = (
        io.BytesIO(),
        {
            "JPEG": {"quality": 100, "subsampling": 0},
            "WEBP": {"lossless": True},
            "AVIF": {"quality": 100, "subsampling": "4:4:4"},
            "APNG": {"save_all": True, "append_images": [ImageOps.invert(image)]},
        }.get(kind, {}),
    )
    kind = kind.replace("APNG", "PNG")
    image.save(file, kind, icc_profile=display_p3(), **how)
    data = file.getvalue()
    packed = fit_video(data, FitPolicy(crf=1)).video
    for shown in (decode(data, [0])[0], decode(packed, [0])[0]):
        assert np.abs(colours(shown) - 255 * PATCHES).max() < 9
    # A profile that cannot be read is as none.
    file = io.BytesIO()
    image.save(file, kind, icc_profile=b"no profile" * 20, **how)
    assert np.abs(colours(decode(file.getvalue(), [0])[0]) - colours(255 * coded)).max() < 9


def test_a_video_of_png_pictures_with_profiles_is_read():
    pictures, file = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8), io.BytesIO()
    with av.open(file, "w", format="mov") as out:
        stream = out.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        for number, picture in enumerate(pictures):
            coded = io.BytesIO()
            Image.fromarray(picture).save(coded, "PNG", icc_profile=display_p3())
            packet = av.Packet(coded.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
            out.mux(packet)
    np.testing.assert_array_equal(decode(file.getvalue(), range(4)), pictures)
    # Where the frames are freed a name that was freed before would crash the process.
    gc.collect()


def test_colours_beyond_bt709_are_cut_at_its_edge():
    pure = np.array([[[65535, 0, 0], [0, 65535, 0], [65535, 65535, 65535], [0, 0, 0]]], np.uint16)
    assert to_sdr(pure, "sdr", 9)[0].tolist() == [[255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]]


QUALITY = {
    "libx265": {"x265-params": "log-level=none:crf=2:bframes=0"},
    "libx264": {"qp": "1"},
    "libsvtav1": {"crf": "1"},
    "libvpx-vp9": {"lossless": "1"},
}


def hdr_video(
    image: np.ndarray, transfer: str, codec: str = "libx265", container: str = "mp4", primaries: int = 9
) -> bytes:
    """Return two frames of an image, RGB from 0 to 1, in ten bits of BT.2020, tagged as of this transfer."""
    # libvpx is built for eight bits here.
    form = "yuv420p" if codec == "libvpx-vp9" else "yuv420p10le"
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=QUALITY[codec])
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], form
        context = stream.codec_context
        context.time_base = Fraction(1, 25)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = (
            9,
            1,
            primaries,
            TAGS[transfer],
        )
        pixels = np.round(65535 * np.clip(image, 0, 1)).astype(np.uint16)
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le")
            frame = frame.reformat(format=form, dst_colorspace=9, dst_color_range=1)
            frame.color_primaries, frame.color_trc = primaries, TAGS[transfer]
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    share_the_core()
    return file.getvalue()


def shown_by_all(video: bytes, folder: Path) -> dict[str, np.ndarray]:
    """Return the first frame as each path shows it."""
    info = probe(video)
    out = np.empty((1, info.height, info.width, 3), np.uint8)
    decode_into(out, video, [0])
    (folder / "a.mp4").write_bytes(video)
    ((_, clip),) = make_clips(folder / "a.mp4", [Span(0, 0.04)], EncodePolicy(crf=1), crop=False, scored=False)
    packed, _, _ = fit_video(video, FitPolicy(720, 1))[:3]
    again = {"prep": clip.video, "pack": packed, "decode": video}
    return {"decode_into": out[0]} | {path: decode(made, [0])[0] for path, made in again.items()}


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("transfer", ["pq", "sdr"])
@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "libsvtav1"])
def test_colours_that_only_the_container_states_count(codec, transfer, container, tmp_path):
    image = patches(PATCHES) if transfer == "sdr" else signal(patches(PATCHES), transfer)
    told = hdr_video(image, transfer, codec, container)
    hidden = untold(told, container)
    (tmp_path / "told").mkdir()
    (tmp_path / "untold").mkdir()
    frames = [next(read_frames(video)) for video in (told, hidden)]
    assert len({(frame.colorspace, frame.color_primaries, frame.color_trc) for frame in frames}) == 1
    wanted = shown_by_all(told, tmp_path / "told")
    found = shown_by_all(hidden, tmp_path / "untold")
    for path, image in wanted.items():
        assert np.array_equal(found[path], image), path


def test_the_curves_are_those_of_the_standards():
    # BT.2408: 203 cd/m2, the grey card of 26 cd/m2, and the peak, in PQ and HLG.
    assert 203 * pq_light(np.array([0.5807, 0.38, 1.0])) == pytest.approx([203, 26, 10_000], rel=0.03)
    assert 1000 * hlg_light(np.array([0.75, 0.5, 1.0])) ** 1.2 == pytest.approx([203, 50, 1000], rel=0.02)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_white_of_203_is_near_white_and_what_is_brighter_is_told_apart(transfer):
    nits = np.array([0, 26, 203, 400, 1000.0])
    image = (pq_signal if transfer == "pq" else hlg_signal)(nits[:, None].repeat(3, 1))[None]
    black, grey, white, bright, peak = to_sdr(np.round(65535 * image).astype(np.uint16), transfer, 9)[0, :, 1].tolist()
    assert black == 0
    # The grey card is at 41 % in BT.709.
    assert abs(grey - 0.41 * 255) < 8
    assert 240 <= white < bright < peak <= 255


def test_light_is_compressed_without_an_edge_and_in_order():
    light = np.linspace(0, 50, 500_001)
    found = compress(light)
    steps = np.diff(found)
    assert np.array_equal(found[light < 0.85], light[light < 0.85])
    assert (steps > 0).all()
    assert found[-1] < 1
    assert np.abs(np.diff(steps)).max() < 1e-6


@pytest.mark.parametrize(
    ("transfer", "codec", "container"),
    [("pq", "libx265", "mp4"), ("hlg", "libx265", "mp4"), ("pq", "libx264", "mp4"), ("hlg", "libsvtav1", "matroska")],
)
def test_the_bars_look_alike_in_every_rendering_and_on_every_path(transfer, codec, container, tmp_path):
    sdr = patches(PATCHES)
    video = hdr_video(signal(sdr, transfer), transfer, codec, container)
    expected = np.round(255 * PATCHES)
    for path, image in shown_by_all(video, tmp_path).items():
        # One step of ten bits beside a bright colour is some levels of a dark one.
        off = np.abs(colours(image) - expected)
        assert (off.max(), off.mean()) <= (14, 2), path
        assert off[expected > 60].max() <= 5, path
    # Also where who made it took another curve of ordinary video for granted.
    other = decode(hdr_video(signal(sdr, transfer, 2.4), transfer, codec, container), [0])[0]
    assert np.abs(colours(other) - expected).max() <= 24
    plain = decode(write_video(np.round(255 * sdr[None]).astype(np.uint8), crf="1"), [0])[0]
    assert np.abs(colours(decode(video, [0])[0]) - colours(plain)).mean() <= 4


def test_primaries_are_respected():
    """The same signal is more colourful in BT.2020 than in P3, and most so than in BT.709."""
    image = patches(signal(PATCHES, "pq"))
    spread = [
        np.ptp(colours(decode(hdr_video(image, "pq", primaries=tag), [0])[0]), axis=-1).mean() for tag in (9, 12, 1)
    ]
    assert spread[0] > spread[1] + 5 > spread[2] + 10


def png_of_hdr(image: np.ndarray) -> bytes:
    """Return a PNG of 16 bits that says by cICP that it is PQ in BT.2020."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = image.shape
    rows = np.round(65535 * image).astype(">u2").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"cICP", bytes([9, 16, 0, 1])), (b"IDAT", data), (b"IEND", b""))
    )


def test_a_still_picture_of_high_dynamic_range_is_brought_down_too():
    picture = png_of_hdr(signal(patches(PATCHES), "pq"))
    for image in (decode(picture, [0])[0], decode(fit_video(picture, FitPolicy(720, 1))[0], [0])[0]):
        assert np.abs(colours(image) - np.round(255 * PATCHES)).max() <= 8


def test_hdr_is_noted_or_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "pq.mp4").write_bytes(hdr_video(signal(patches(PATCHES), "pq"), "pq"))
    (tmp_path / "in" / "sdr.mp4").write_bytes(write_video(np.zeros((2, 48, 128, 3), np.uint8)))
    pack(tmp_path / "in", tmp_path / "all", workers=1, require_caption=False)
    manifest = Manifest.load(tmp_path / "all")
    notes = [json.loads(read_sample(tmp_path / "all", manifest.row(number))["json"]) for number in range(2)]
    assert [note.get("transfer") for note in notes] == ["pq", None]
    report = pack(tmp_path / "in", tmp_path / "some", workers=1, require_caption=False, hdr="reject")
    assert [(clip.name, clip.reason) for clip in report.rejected] == [("pq.mp4", "hdr")]
    with pytest.raises(ValueError, match="found hdr=drop, expected tonemap or reject"):
        pack(tmp_path / "in", tmp_path / "none", workers=1, hdr="drop")


def test_a_prepared_clip_says_what_was_of_high_dynamic_range(tmp_path):
    for transfer, wanted in (("hlg", ({"transfer": "hlg"}, 1.0)), ("", ({}, 0.0))):
        image = patches(PATCHES)
        video = (
            hdr_video(signal(image, transfer), transfer) if transfer else write_video((255 * image[None]).astype("u1"))
        )
        (tmp_path / "a.mp4").write_bytes(video)
        ((_, clip),) = make_clips(tmp_path / "a.mp4", [Span(0, 0.04)], EncodePolicy(), scored=False)
        assert (clip.notes, clip.scores["hdr"]) == wanted


# Full and limited range, and every matrix, of each format that tells them.


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9])
@pytest.mark.parametrize("file", ["libx264 mp4", "libx265 mp4", "libvpx-vp9 webm", "ffv1 matroska"])
def test_matrix_and_range_are_those_of_the_tags(matrix, full, file, tmp_path):
    codec, container = file.split()
    weights = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
    red, blue = weights[matrix]
    values = PATCHES * 255
    luma = values @ (red, 1 - red - blue, blue)
    cb, cr = (values[..., 2] - luma) / (2 - 2 * blue), (values[..., 0] - luma) / (2 - 2 * red)
    scale = (1, 0, 1) if full else (219 / 255, 16, 224 / 255)
    planes = [luma * scale[0] + scale[1], 128 + cb * scale[2], 128 + cr * scale[2]]
    y, u, v = (patches(np.round(plane)[..., None], 16)[..., 0].astype(np.uint8) for plane in planes)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=QUALITY.get(codec, {}))
        stream.height, stream.width, stream.pix_fmt = *y.shape, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full
        packed = np.concatenate([y.ravel(), u[::2, ::2].ravel(), v[::2, ::2].ravel()]).reshape(-1, y.shape[1])
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(packed, format="yuv420p")
            frame.colorspace, frame.color_range = matrix, 1 + full
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for path, image in shown_by_all(file.getvalue(), tmp_path).items():
        assert np.abs(colours(image) - values).max() <= 6, path


# Depth.


@pytest.mark.parametrize(
    ("codec", "container", "pixels"),
    [("png", "image2pipe", one) for one in ("rgb48be", "rgba64be", "gray16be", "ya16be")]
    + [("ffv1", "matroska", one) for one in ("gbrp10le", "gbrp16le", "gray16le")],
)
def test_a_picture_of_more_than_eight_bits_has_the_levels_of_one_of_eight(codec, container, pixels):
    levels = np.broadcast_to(np.arange(256, dtype=np.uint16)[None, :, None], (16, 256, 3))
    deep = io.BytesIO()
    with av.open(deep, "w", format=container) as out:
        stream = out.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = 16, 256, pixels
        grey = pixels.startswith(("gray", "ya"))
        given, kind = (levels[..., 0] * 257, "gray16le") if grey else (levels * 257, "rgb48le")
        out.mux(stream.encode(av.VideoFrame.from_ndarray(given, format=kind).reformat(format=pixels)))
        out.mux(stream.encode(None))
    assert np.array_equal(decode(deep.getvalue(), [0])[0], levels)
    flat = saved(Image.fromarray(levels.astype(np.uint8)), "PNG")
    packed, wanted = (decode(fit_video(one, FitPolicy(720, 1))[0], [0])[0] for one in (deep.getvalue(), flat))
    # Half a level too bright would be a step of the mean.
    assert abs(packed.astype(int) - wanted).max() <= 2
    assert abs(packed.mean() - wanted.mean()) < 0.1


# Transparency.


def veil() -> np.ndarray:
    """Return uint8 `h w 4`: noise that is fully, half and not transparent, a third each."""
    image = np.random.default_rng(0).integers(0, 256, (48, 96, 4), np.uint8)
    image[..., :3] = image[::8, ::8, :3].repeat(8, 0).repeat(8, 1)
    image[:, :32, 3], image[:, 32:64, 3], image[:, 64:, 3] = 0, 128, 255
    return image


def laid(image: np.ndarray) -> np.ndarray:
    """Return an image on white, as Pillow composes it."""
    picture = Image.fromarray(image)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")).astype(
        int
    )


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def stills() -> dict[str, tuple[bytes, np.ndarray]]:
    """Return pictures with transparent parts and how they look on white."""
    image = veil()
    grey = image.copy()
    grey[..., :3] = image[..., :1]
    hard = image.copy()
    hard[..., 3] = np.where(image[..., 3] > 0, 255, 0)
    few = hard.copy()
    few[..., :3] = few[..., :3] // 128 * 255
    palette = Image.fromarray(few).quantize(16, method=Image.Quantize.FASTOCTREE)
    deep = io.BytesIO()
    with av.open(deep, "w", format="image2pipe") as out:
        stream = out.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "rgba64be"
        frame = av.VideoFrame.from_ndarray(image.astype(np.uint16) * 257, format="rgba64le").reformat(format="rgba64be")
        out.mux([*stream.encode(frame), *stream.encode(None)])
    grey = Image.fromarray(grey).convert("LA")
    return {
        "png": (saved(Image.fromarray(image), "PNG"), laid(image)),
        "webp": (saved(Image.fromarray(image), "WEBP", lossless=True, exact=True), laid(image)),
        "grey png": (saved(grey, "PNG"), laid(np.asarray(grey.convert("RGBA")))),
        "palette": (saved(palette, "PNG"), laid(np.asarray(palette.convert("RGBA")))),
        "gif": (saved(Image.fromarray(few), "GIF"), laid(few)),
        "16 bits": (deep.getvalue(), laid(image)),
    }


@pytest.mark.parametrize("kind", ["png", "webp", "grey png", "palette", "gif", "16 bits"])
def test_transparent_parts_of_a_picture_are_white(kind):
    picture, expected = stills()[kind]
    assert np.abs(decode(picture, [0])[0] - expected).max() <= 2
    packed = decode(fit_video(picture, FitPolicy(720, 1))[0], [0])[0]
    assert (packed[:, 2:28] >= 250).all()
    assert np.abs(packed - expected).mean() < 8


def clear_video(codec: str, pixels: str, container: str, **options: str) -> bytes:
    """Return a video of two frames with transparent parts."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 96, pixels
        for _ in range(2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(veil(), format="rgba").reformat(format=pixels)))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("codec", "pixels", "container", "options"),
    [
        ("libvpx-vp9", "yuva420p", "webm", {"lossless": "1"}),
        ("libvpx", "yuva420p", "webm", {"auto-alt-ref": "0", "crf": "4", "b": "4M"}),
        ("prores_ks", "yuva444p10le", "mov", {"profile": "4444"}),
        ("qtrle", "argb", "mov", {}),
        ("png", "rgba", "mov", {}),
        ("ffv1", "bgra", "matroska", {}),
        ("apng", "rgba", "apng", {}),
    ],
)
def test_transparent_parts_of_a_video_are_white_on_every_path(codec, pixels, container, options, tmp_path):
    video = clear_video(codec, pixels, container, **options)
    assert probe(video).frames == 2
    expected = laid(veil())
    for path, image in shown_by_all(video, tmp_path).items():
        assert (image[:, 4:26] >= 248).all(), path
        assert np.abs(image - expected).mean() < 10, path
    ((_, clip),) = make_clips(tmp_path / "a.mp4", [Span(0, 0.04)], EncodePolicy(), crop=False, scored=False)
    assert clip.notes == {"alpha": "white"}


def test_the_ground_is_noted_where_there_is_one_to_see(tmp_path):
    (tmp_path / "in").mkdir()
    solid = veil()
    solid[..., 3] = 255
    cmyk = Image.fromarray(veil(), "RGBA").convert("RGB").convert("CMYK")
    pictures = {"a.png": saved(Image.fromarray(veil()), "PNG"), "b.png": saved(Image.fromarray(solid), "PNG")}
    pictures["c.jpg"] = saved(cmyk, "JPEG", quality=95)
    for name, data in pictures.items():
        (tmp_path / "in" / name).write_bytes(data)
    pack(tmp_path / "in", tmp_path / "out", workers=1, require_caption=False)
    manifest = Manifest.load(tmp_path / "out")
    notes = [json.loads(read_sample(tmp_path / "out", manifest.row(number))["json"]) for number in range(3)]
    assert [note.get("alpha") for note in notes] == ["white", None, None]
    expected = np.asarray(Image.open(io.BytesIO(pictures["c.jpg"])).convert("RGB")).astype(int)
    assert np.abs(decode(pictures["c.jpg"], [0])[0] - expected).mean() < 4
