from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.worlds.following import text_to_video
from videodiff.metrics.worlds.parsing import track
from videodiff.worlds.bouncing import GRAMMAR, LAW, Bouncing
from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola
from videodiff.worlds.scene import Scene, render

FPS = 10.0
ASKED = "a small red ball moves right slowly and a large blue ball moves up quickly"


def drawn(radii=(1.1, 1.8), colours=("red", "blue"), velocity=((1.3, 0.0), (0.0, 3.2)), frames=8) -> np.ndarray:
    time = np.arange(frames)[:, None, None] / FPS
    v = np.broadcast_to(np.array(velocity), (frames, 2, 2))
    position = np.array([[2.0, 3.0], [7.0, 4.0]]) + time * v
    return render(Scene(position, v, np.array(radii), colours, FPS, ASKED, LAW), 32)


def test_a_clip_that_shows_its_caption_is_right_in_everything():
    assert text_to_video(drawn(), ASKED, FPS, GRAMMAR) == {
        "colour_accuracy": 1.0,
        "count_accuracy": 1.0,
        "direction_accuracy": 1.0,
        "speed_accuracy": 1.0,
        "size_accuracy": 1.0,
    }


@pytest.mark.parametrize(
    ("change", "accuracy"),
    [
        ({"velocity": ((-1.3, 0.0), (0.0, 3.2))}, "direction_accuracy"),
        ({"velocity": ((3.0, 0.0), (0.0, 3.2))}, "speed_accuracy"),
        ({"radii": (1.1, 1.0)}, "size_accuracy"),
    ],
)
def test_one_wrong_word_of_two_balls_is_half_wrong_and_nothing_else_is(change, accuracy):
    numbers = text_to_video(drawn(**change), ASKED, FPS, GRAMMAR)
    assert numbers.pop(accuracy) == 0.5
    assert set(numbers.values()) == {1.0}


def test_swapped_directions_are_all_wrong():
    assert text_to_video(drawn(velocity=((0.0, 1.3), (3.2, 0.0))), ASKED, FPS, GRAMMAR)["direction_accuracy"] == 0.0


def test_a_ball_of_the_wrong_colour_is_wrong_in_everything_but_the_count():
    numbers = text_to_video(drawn(colours=("red", "purple")), ASKED, FPS, GRAMMAR)
    assert numbers == {
        "colour_accuracy": 0.0,
        "count_accuracy": 1.0,
        "direction_accuracy": 0.5,
        "speed_accuracy": 0.5,
        "size_accuracy": 0.5,
    }


def test_a_ball_that_stands_still_heads_nowhere():
    assert text_to_video(drawn(velocity=((0.0, 0.0), (0.0, 3.2))), ASKED, FPS, GRAMMAR)["direction_accuracy"] == 0.5


def test_frames_without_one_of_the_balls_are_miscounted():
    frames = drawn()
    frames[6:, :, 16:] = 255
    assert text_to_video(frames, ASKED, FPS, GRAMMAR)["count_accuracy"] == pytest.approx(6 / 8)


def test_speed_is_measured_in_seconds_not_in_frames():
    assert text_to_video(drawn(), ASKED, FPS / 3, GRAMMAR)["speed_accuracy"] == 0.5


def test_an_image_is_judged_by_what_one_frame_can_show():
    assert text_to_video(drawn(frames=1), ASKED, FPS, GRAMMAR) == {
        "colour_accuracy": 1.0,
        "count_accuracy": 1.0,
        "size_accuracy": 1.0,
    }


def test_a_caption_without_size_and_pace_asks_for_neither():
    asked = "a red ball moves right"
    assert set(text_to_video(drawn(), asked, FPS, GRAMMAR)) == {
        "colour_accuracy",
        "count_accuracy",
        "direction_accuracy",
    }


@pytest.mark.parametrize("world", [Bouncing(balls={1: 1, 2: 1, 3: 1}), Collision(), Parabola()])
def test_the_truth_of_every_world_shows_its_own_caption(world):
    for scene in map(world.scene, range(8)):
        frames = render(scene, 32)[:8]
        assert track(frames).visible.any()
        assert set(text_to_video(frames, scene.caption, scene.fps, scene.law.grammar).values()) == {1.0}
