"""What the camera does, on clips whose camera is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_prep.caption.words import score_words
from data_prep.score.camera import camera_motion
from data_prep.score.motion import motion
from tests.material.scored_clips import panning, still, texture

FPS = 2.0
HEIGHT, WIDTH = 256, 456


def zooming(growth: float, frames: int = 8) -> np.ndarray:
    """Enlarge a picture by so much a frame about the centre."""
    picture = texture(2 * HEIGHT, 2 * WIDTH)
    scales = (1 + growth) ** (np.arange(frames) - frames / 2)
    views = [cv2.getRotationMatrix2D((WIDTH, HEIGHT), 0, scale) for scale in scales]
    large = [cv2.warpAffine(picture, view, (2 * WIDTH, 2 * HEIGHT), flags=cv2.INTER_LINEAR) for view in views]
    return np.stack([view[HEIGHT // 2 : -HEIGHT // 2, WIDTH // 2 : -WIDTH // 2] for view in large])


def upright(video: np.ndarray) -> np.ndarray:
    """Turn a pan to the right into a tilt down."""
    return np.ascontiguousarray(video.transpose(0, 2, 1, 3))


def with_walker(video: np.ndarray) -> np.ndarray:
    """Let something of a fifth of the width move through the picture."""
    video = video.copy()
    for number, frame in enumerate(video):
        frame[60:200, 40 * number : 40 * number + 90] = texture(140, 90, seed=5)[:, : len(frame[0]) - 40 * number]
    return video


MOVES = {
    "static": (still, "static"),
    "static with a walker": (lambda: with_walker(still(8)), "static"),
    "pan right": (panning, "pan right"),
    "pan left": (lambda: panning(speed=-12), "pan left"),
    "pan with a walker": (lambda: with_walker(panning(8)), "pan right"),
    "tilt down": (lambda: upright(panning(height=WIDTH, width=HEIGHT)), "tilt down"),
    "tilt up": (lambda: upright(panning(height=WIDTH, width=HEIGHT, speed=-12)), "tilt up"),
    "zoom in": (lambda: zooming(0.05), "zoom in"),
    "zoom out": (lambda: zooming(-0.05), "zoom out"),
    "by hand": (lambda: panning(speed=0, shake=12), ""),
    "one frame": (lambda: panning(1), "static"),
}


@pytest.mark.parametrize("name", MOVES)
def test_the_camera_is_told_from_the_frames(name):
    video, expected = MOVES[name]
    scores = motion(video(), FPS)
    assert camera_motion(*(scores[key] for key in ("pan", "tilt", "zoom", "jitter"))) == expected, scores
    words = score_words(scores, [], camera=True)
    assert words == ([f"Camera motion: {expected}."] if expected else [])


def test_pan_and_zoom_are_in_heights_and_shares_a_second_whatever_the_size():
    for size in (1, 2):
        scores = motion(panning()[:, ::size, ::size], FPS)
        assert scores["pan"] == pytest.approx(2 * 12 / 256, rel=0.15)
        assert abs(scores["tilt"]) < 0.005
        assert abs(scores["zoom"]) < 0.01
        assert motion(zooming(0.05)[:, ::size, ::size], FPS)["zoom"] == pytest.approx(2 * 0.05, rel=0.2)


def test_words_are_added_within_limits_that_include_their_ends():
    rules = [
        {"score": "motion", "max": 0.1, "text": "low motion"},
        {"score": "motion", "min": 0.1, "max": 0.5, "text": "some motion."},
        {"score": "text", "min": 0, "text": "with text"},
    ]
    assert score_words({"motion": 0.1, "text": None}, rules, camera=False) == ["Low motion.", "Some motion."]
    assert score_words({"motion": 0.6, "text": 0.0}, rules, camera=False) == ["With text."]


def test_a_ball_before_plain_ground_is_no_camera_that_shakes():
    # It turns back after each frame.
    frames = np.full((6, 96, 96, 3), 235, np.uint8)
    for number, frame in enumerate(frames):
        cv2.circle(frame, (40 + 10 * (number % 2), 48), 14, (200, 30, 30), -1)
    scores = motion(frames, 5.0)
    assert scores["motion"] > 0.01
    assert scores["jitter"] < 0.05
    assert max(abs(scores[name]) for name in ("pan", "tilt")) < 0.05
