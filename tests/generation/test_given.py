"""Videos, pictures and masks that are given to a clip, in its size and at its times."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from videodiff.data.video.decode import decode, resize
from videodiff.data.video.encode import encode
from videodiff.generation.given import read_footage, read_known, read_mask, read_whole, remarks

CODEC = SimpleNamespace(causal=False, compression=(1, 1, 1), name="by frames")
GREYS = np.arange(10, 250, 10, dtype=np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> str:
    """Return a video of 24 frames, 10 a second, each of another grey."""
    frames = np.broadcast_to(GREYS[:, None, None, None], (24, 16, 24, 3))
    (tmp_path / "given.mp4").write_bytes(encode(frames, 10.0, crf=1))
    return str(tmp_path / "given.mp4")


def picture(path: Path, grey: int, size: tuple[int, int] = (16, 16)) -> str:
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)
    return str(path)


def greys(frames: np.ndarray) -> list[int]:
    return [round(grey / 10) * 10 for grey in frames.mean(axis=(1, 2, 3))]


def test_a_picture_is_a_video_of_one_frame_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    one = read_footage("given", str(tmp_path / "a.png"))
    numbers, frames = read_known([one], [0], CODEC, (4, 16, 16), 5.0, 0.0)
    assert numbers == (0,)
    assert np.array_equal(frames[0], pixels)
    assert np.array_equal(read_whole(one, (4, 16, 16), 5.0, 0.0), np.repeat(pixels[None], 4, 0))
    assert remarks([one], (4, 16, 16)) == []
    assert remarks([one], (4, 8, 16)) == [f"given: {one.name} has 16 x 16 pixels, scaled and cut to 8 x 16"]


def test_pictures_stand_at_the_frames_that_are_named_in_their_order(tmp_path: Path) -> None:
    files = [read_footage("given", picture(tmp_path / f"{grey}.png", grey)) for grey in (50, 200)]
    for known, wanted in (([0, -1], [50, 200]), ([-1, 0], [200, 50])):
        numbers, frames = read_known(files, known, CODEC, (6, 16, 16), 5.0, 0.0)
        assert (numbers, greys(frames)) == ((0, 5), wanted)
    with pytest.raises(ValueError, match="found 2 files for known=\\[0, 1, 2\\], expected one video, or a picture for"):
        read_known(files, [0, 1, 2], CODEC, (6, 16, 16), 5.0, 0.0)


@pytest.mark.parametrize(
    ("start", "fps", "wanted"),
    [
        (0.0, 10.0, [10, 20, 30]),
        (0.5, 10.0, [60, 70, 80]),
        (0.5, 5.0, [60, 80, 100]),
        (-0.3, 10.0, [220, 230, 240]),
        # Halfway between two frames: the later ones.
        (0.25, 10.0, [40, 50, 60]),
        (0.05, 10.0, [20, 30, 40]),
        (0.15, 10 / 3, [30, 60, 90]),
    ],
)
def test_a_video_is_taken_from_a_second_of_it(video: str, start: float, fps: float, wanted: list[int]) -> None:
    one = read_footage("given", video)
    assert greys(read_known([one], [0, 1, 2], CODEC, (6, 16, 24), fps, start)[1]) == wanted


def test_a_video_beside_a_picture_gives_its_frame_at_the_start(video: str, tmp_path: Path) -> None:
    files = [read_footage("given", name) for name in (picture(tmp_path / "a.png", 250, (16, 24)), video)]
    for start, grey in ((0.0, 10), (0.5, 60), (-0.1, 240)):
        assert greys(read_known(files, [0, -1], CODEC, (6, 16, 24), 5.0, start)[1]) == [250, grey]


def test_frames_that_a_video_does_not_have_are_an_error(video: str) -> None:
    one = read_footage("given", video)
    for start, message in ((2.3, "expected at least 26 for the frames"), (-1e300, "start"), (2.4, "start")):
        message = message.replace("start", rf"start: found {start:g}, expected -2.4 to 2.4: .* has so many seconds")
        with pytest.raises(ValueError, match=message.replace("+", r"\+")):
            read_known([one], [0, 1, 2], CODEC, (6, 16, 24), 10.0, start)


def test_a_large_file_is_in_memory_a_frame_at_a_time(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (24, 240, 320, 3), dtype=np.uint8)
    (tmp_path / "large.mp4").write_bytes(encode(frames, 10.0))
    Image.fromarray(frames[0]).save(tmp_path / "large.png")
    for name in ("large.mp4", "large.png"):
        one = read_footage("given", str(tmp_path / name))
        # The first call imports torch.
        read_whole(one, (24, 16, 16), 10.0, 0.0)
        tracemalloc.start()
        made = read_whole(one, (24, 16, 16), 10.0, 0.0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 3 * frames[0].nbytes
        whole = one.picture[None] if name == "large.png" else decode(one.data, range(24))
        assert np.array_equal(made, np.broadcast_to(resize(whole, 16, 16), made.shape))


def test_white_of_a_mask_is_made_and_black_is_kept(tmp_path: Path) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    new = read_mask(str(tmp_path / "mask.png"), (3, 16, 16), 8.0, 0.0)
    assert new.shape == (3, 16, 16)
    assert not new[..., :8].any()
    assert new[..., 8:].all()
    frames = np.repeat(mask[None, ..., None], 3, -1)
    (tmp_path / "mask.mp4").write_bytes(encode(np.repeat(frames, 2, 0), 8.0))
    with pytest.raises(
        ValueError, match=r"mask: .*mask\.mp4 has 2 frames, expected at least 3 for the frames \[0, 1, 2\]"
    ):
        read_mask(str(tmp_path / "mask.mp4"), (3, 16, 16), 8.0, 0.0)
    Image.fromarray(mask * 0).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="found black everywhere"):
        read_mask(str(tmp_path / "black.png"), (3, 16, 16), 8.0, 0.0)
    # White strokes on a transparent layer, which is shown on white.
    Image.fromarray(mask[..., None].repeat(4, -1)).save(tmp_path / "layer.png")
    with pytest.raises(ValueError, match="found white everywhere, as transparent parts are"):
        read_mask(str(tmp_path / "layer.png"), (3, 16, 16), 8.0, 0.0)


def test_a_video_of_a_mask_runs_beside_the_given_one(tmp_path: Path) -> None:
    # 30 frames a second; the white bar is in column k // 6 of 8 columns of 2 pixels, one for each fifth of a second.
    frames = np.zeros((48, 16, 16, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, number // 6 * 2 : number // 6 * 2 + 2] = 255
    (tmp_path / "mask.mp4").write_bytes(encode(frames, 30.0, crf=1))
    for start, first in ((0.0, 0), (0.4, 2), (-0.8, 4)):
        new = read_mask(str(tmp_path / "mask.mp4"), (4, 16, 16), 5.0, start)
        assert [np.flatnonzero(one.all(axis=0))[0] // 2 for one in new] == list(range(first, first + 4))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    # Its first page is no memory: reading it is an error of the device, as of a disk that fails.
    (tmp_path / "broken.mp4").symlink_to("/proc/self/mem")
    with pytest.raises(ValueError, match=r"mask: .*broken\.mp4: found no readable video or picture \(\[Errno 5\]"):
        read_footage("mask", str(tmp_path / "broken.mp4"))


@pytest.mark.parametrize(("name", "data"), [("a.png", b"no picture"), ("a.mp4", b"no video"), ("a.mp4", b"")])
def test_a_file_that_is_no_picture_and_no_video_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"given: .*{name}: found no readable video or picture"):
        read_footage("given", str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="mask: found no file"):
        read_footage("mask", str(tmp_path / "none.png"))
    with pytest.raises(FileNotFoundError, match=f"given: found the folder {tmp_path}, expected a video or a picture"):
        read_footage("given", str(tmp_path))


def test_a_file_that_is_cut_off_is_not_told_that_it_is_too_large(tmp_path: Path) -> None:
    whole = Path(picture(tmp_path / "a.png", 9)).read_bytes()
    moving = [Image.fromarray(np.full((16, 16, 3), grey, np.uint8)) for grey in (9, 99)]
    moving[0].save(tmp_path / "moving.webp", save_all=True, append_images=moving[1:])
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("cut.png", "moving.webp"):
        with pytest.raises(ValueError, match="damaged or cut off, of a kind that is not read"):
            read_footage("given", str(tmp_path / name))
