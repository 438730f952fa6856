import numpy as np
import pytest

from videodiff.data.video.encode import encode
from videodiff.report.strip import EDGE, GAP, GIVEN, Example, film_strip, fit, hero, later, read_frames, shorten


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def test_every_frame_stands_in_the_strip_pixel_for_pixel(frames):
    strip = np.asarray(film_strip(frames, given=2, scale=3))
    for i, frame in enumerate(frames):
        left = i * (6 * 3 + 2 * EDGE + GAP) + EDGE
        shown = strip[EDGE : EDGE + 12, left : left + 18, :3]
        np.testing.assert_array_equal(shown[::3, ::3], frame)
        np.testing.assert_array_equal(shown[2::3, 2::3], frame)


def test_given_frames_and_only_they_are_outlined(frames):
    strip = np.asarray(film_strip(frames, given=2, scale=3))
    corners = [tuple(strip[0, i * (6 * 3 + 2 * EDGE + GAP)]) for i in range(5)]
    assert [corner == (*GIVEN, 255) for corner in corners] == [True, True, False, False, False]


def test_the_strip_is_transparent_between_its_frames(frames):
    strip = np.asarray(film_strip(frames, given=0, scale=1))
    assert (strip[:, 6 + 2 * EDGE : 6 + 2 * EDGE + GAP, 3] == 0).all()


@pytest.mark.parametrize("size", [(16, 4096), (4096, 16), (2, 16384), (16384, 2)])
def test_frames_of_extreme_shape_fit_a_strip_that_webp_can_hold(size):
    strip = fit(np.full((10, *size, 3), 200, np.uint8), 72)
    assert strip.width < 16384
    assert strip.height <= 72 + 2 * EDGE
    assert (200, 200, 200, 255) in {colour for _, colour in strip.getcolors()}


def test_a_strip_without_frames_is_an_error():
    with pytest.raises(ValueError, match="found no frames"):
        film_strip([], 0, 1)


def test_later_frames_are_even_and_reach_the_end():
    assert later(32, 3, 8).tolist()[-1] == 31
    assert later(32, 3, 8).tolist()[0] == 3
    assert set(np.diff(later(32, 3, 8)).tolist()) == {4}
    assert later(5, 3, 8).tolist() == [3, 4]


def test_a_clip_of_given_frames_only_is_an_error():
    with pytest.raises(ValueError, match="found 3 frames of which 3 are given"):
        later(3, 3, 8)


def test_the_hero_shows_given_sampled_and_true_frames(frames):
    red, green, blue = (np.full((6, 8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    sampled = np.concatenate([blue[:2], red])
    image = hero([Example("a ball", 2, sampled, np.concatenate([blue[:2], green]))], columns=6, cell=32)
    colours = {colour: count for count, colour in image.getcolors(1 << 24)}
    assert colours[(255, 0, 0)] == colours[(0, 255, 0)] == 6 * 32 * 32
    assert colours[(0, 0, 255)] == 2 * 32 * 32


def test_the_hero_grows_with_its_clips_and_takes_large_ones(frames):
    large = np.zeros((4, 300, 500, 3), np.uint8)
    one = hero([Example("", 0, large)], cell=48)
    two = hero([Example("", 0, large), Example("two", 1, large, large)], cell=48)
    assert two.height > one.height
    assert one.height < 300


def test_a_long_caption_is_cut_to_its_width():
    class Typewriter:
        def getlength(self, text):
            return len(text)

    assert shorten("a large red ball", Typewriter(), 10) == "a large..."
    assert shorten("a ball", Typewriter(), 10) == "a ball"


def test_a_video_is_read_whole(tmp_path):
    grey = np.full((7, 32, 32, 3), 128, np.uint8)
    (tmp_path / "x.mp4").write_bytes(encode(grey, 8))
    found = read_frames(tmp_path / "x.mp4")
    assert found.shape == grey.shape
    assert np.abs(found.astype(int) - 128).max() <= 2


def test_a_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"x\.mp4: "):
        read_frames(tmp_path / "x.mp4")
