"""What becomes of a clip, second by second, on clips whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.motion.drift import Drift, sharpness
from videodiff.metrics.worlds.captions import phrases
from videodiff.metrics.worlds.lawful import pace_of
from videodiff.worlds.bouncing import LAW, Bouncing
from videodiff.worlds.scene import PALETTE, Scene, render


def scene_of_one_ball() -> tuple[str, np.ndarray]:
    world = Bouncing(frames=20, balls={1: 1.0}, split="all")
    scene = world.scene(3)
    return scene.caption, render(scene, 32)


def measured(caption: str, frames: np.ndarray) -> dict:
    drift = Drift(caption, 5.0)
    assert np.array_equal(np.stack(list(drift(frames))), frames)
    return drift.result()


def test_a_true_clip_does_not_drift() -> None:
    caption, frames = scene_of_one_ball()
    found = measured(caption, frames)
    assert (found["frames"], found["seconds"], len(found["by_second"])) == (20, 4.0, 4)
    assert found["count_accuracy"] == found["colour_accuracy"] == 1.0
    assert found["size_ratio"] == pytest.approx(1, abs=0.1)
    assert found["last_sharpness_ratio"] == pytest.approx(1, abs=0.1)


def test_each_second_tells_what_is_wrong_in_it() -> None:
    caption, frames = scene_of_one_ball()
    frames = frames.copy()
    # In the second second there is no ball, in the third another colour for two of five frames.
    frames[5:10] = frames.max()
    ball = (frames[10:12].astype(int) - frames.max()).min(-1) < -20
    frames[10:12][ball] = PALETTE["red" if "red" not in caption else "blue"]
    rows = measured(caption, frames)["by_second"]
    assert [row["count_accuracy"] for row in rows] == [1.0, 0.0, 1.0, 1.0]
    assert [row["colour_accuracy"] for row in rows] == pytest.approx([1.0, 0.0, 0.6, 1.0])
    assert rows[1]["size_ratio"] == 0.0
    assert rows[1]["sharpness_ratio"] == 0.0


def long_scene(balls: int, seed: int = 3, seconds: int = 10) -> tuple[str, np.ndarray]:
    scene = Bouncing(frames=5 * seconds, balls={balls: 1.0}, split="all").scene(seed)
    return scene.caption, render(scene, 32)


@pytest.mark.parametrize("balls", [1, 2, 3])
def test_balls_that_bounce_off_walls_and_each_other_fly_by_the_law(balls: int) -> None:
    found = measured(*long_scene(balls))
    assert found["motion_accuracy"] == 1.0
    assert found["law_error"] < 0.02


def seconds_that_are_right(caption: str, frames: np.ndarray) -> list[float]:
    return [row["motion_accuracy"] for row in measured(caption, frames)["by_second"]]


def test_a_jump_costs_the_seconds_that_see_it() -> None:
    caption, frames = long_scene(1)
    # Half a view to the right: no ball is at the same place afterwards.
    jumped = np.concatenate([frames[:25], np.roll(frames[25:], 16, axis=2)])
    right = seconds_that_are_right(caption, jumped)
    assert right[5] == 0.0
    assert right[:5] == [1.0] * 5


def test_a_jump_is_forgotten_by_later_seconds() -> None:
    # Slowly to the right, and in the sixth frame from one height to another.
    way = np.stack([1.5 + 1.3 * np.arange(25) / 5, np.where(np.arange(25) < 6, 3.0, 7.0)], -1)
    assert seconds_that_are_right("a small red ball moves right slowly", disc_at(way)) == [1, 0, 1, 1, 1]


def test_the_speed_of_several_balls_is_weighted_by_their_mass() -> None:
    asked = phrases("a red ball moves left slowly and a blue ball moves up quickly", LAW.grammar)
    (low, high), (least, most) = LAW.grammar.paces["slowly"], LAW.grammar.paces["quickly"]
    expected = [np.sqrt((a**2 + 4 * b**2) / 5) for a, b in ((low, least), (high, most))]
    assert pace_of(asked, np.array([0.8, 1.6]), LAW) == pytest.approx(expected)


def test_a_turn_where_nothing_is_breaks_the_law() -> None:
    caption = "a small red ball moves right quickly"
    # To the right at 3 units/s, and back from the middle of the view: there is no wall.
    way = np.concatenate([np.linspace(2, 5, 6), np.linspace(5, 2, 6)[1:]])
    frames = disc_at(np.stack([way, np.full(11, 5.0)], -1))
    assert seconds_that_are_right(caption, frames)[:2] == [1.0, 0.0]
    # At the wall it is a reflection.
    frames = disc_at(np.stack([way + 4, np.full(11, 5.0)], -1))
    assert seconds_that_are_right(caption, frames)[:2] == [1.0, 1.0]


@pytest.mark.parametrize(("speed", "right"), [(3.2, 1.0), (0.0, 0.0), (1.3, 0.0), (5.0, 0.0)])
def test_the_speed_is_that_of_the_caption(speed: float, right: float) -> None:
    way = 1.5 + speed * np.arange(6) / 5
    frames = disc_at(np.stack([way, np.full(6, 5.0)], -1))
    assert seconds_that_are_right("a small red ball moves right quickly", frames)[0] == right


def test_a_ball_that_is_gone_does_not_fly_by_the_law() -> None:
    caption, frames = long_scene(1, seconds=4)
    frames[10:15] = 255
    rows = measured(caption, frames)["by_second"]
    assert [row["motion_accuracy"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert rows[2]["law_error"] == 1.0


def disc_at(position: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """Return frames of a red disc at these places (t, 2)."""
    still = np.zeros_like(position)[:, None]
    return render(Scene(position[:, None], still, np.array([radius]), ("red",), 5.0, "", LAW), 32)


def test_a_ball_as_large_as_the_world_has_no_flight_and_is_measured_all_the_same() -> None:
    _, frames = scene_of_one_ball()
    red = np.broadcast_to(np.array(PALETTE["red"], np.uint8), frames[:5].shape).copy()
    # Its centre moves to the right, as more and more columns at the left are missing.
    for number, frame in enumerate(red):
        frame[:, :number] = frames.max()
    found = measured("a large red ball moves left slowly", red)
    assert (found["motion_accuracy"], found["law_error"]) == (0.0, 1.0)


def test_a_caption_of_a_later_second_says_what_is_expected_from_there_on() -> None:
    caption, frames = scene_of_one_ball()
    # From the third second on the ball has another colour; in the last one it is of no world.
    now = next(word for word in caption.split() if word in PALETTE)
    other = "red" if now != "red" else "blue"
    changed = frames.copy()
    changed[10:][(frames[10:].astype(int) - frames.max()).min(-1) < -20] = PALETTE[other]
    drift = Drift(caption, 5.0, ((10, caption.replace(now, other)), (17, "a kite")))
    list(drift(changed))
    found = drift.result()
    assert [row["colour_accuracy"] for row in found["by_second"]] == pytest.approx([1, 1, 1, 1], abs=0.01)
    assert found["colour_accuracy"] == pytest.approx(1.0, abs=0.01)
    assert measured(caption, changed)["colour_accuracy"] == pytest.approx(0.5, abs=0.01)


def test_any_video_has_sharpness_and_brightness() -> None:
    frames = np.zeros((10, 8, 12, 3), np.uint8)
    frames[:, ::2] = 100
    frames[5:, ::2], frames[5:, 1::2] = 80, 40
    found = measured("a dog on a beach", frames)
    assert not {"count_accuracy", "motion_accuracy", "law_error"} & found.keys()
    # Stripes that differ by 40 instead of 100 levels, and are 10 levels brighter.
    assert found["last_sharpness_ratio"] == pytest.approx(0.4)
    assert found["last_brightness_change"] == pytest.approx(10)


def test_the_laplacian_of_a_single_point() -> None:
    image = np.zeros((5, 5), np.float32)
    image[2, 2] = 9
    assert sharpness(image) == pytest.approx((4 * 9 + 4 * 9) / 9)
