"""Flow, warping error and dynamic degree, on clips that are made to have them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from videodiff.metrics.metric import Case
from videodiff.metrics.motion.flow import Flow, dis_flow, disc_flow, flow_of, sampled
from videodiff.metrics.motion.warping import moves, warping, warping_error
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.scene import Scene, render


def scene(frames: int = 8, balls: int = 2) -> Scene:
    return Bouncing(frames=frames, balls={balls: 1.0}, split="all").scene(3)


def case_of(one: Scene, frames: np.ndarray | None = None, size: int = 64) -> Case:
    truth = render(one, size)
    return Case("a", truth if frames is None else frames, truth, one.caption, one.fps, 3, one)


def textured(frames: int, side: int, step: tuple[int, int]) -> np.ndarray:
    """Return smooth noise that moves `step` pixels (x, y) a frame."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(side + 200, side + 200))
    for axis in (0, 1):
        for _ in range(3):
            noise = (np.roll(noise, 1, axis) + noise + np.roll(noise, -1, axis)) / 3
    levels = np.clip(128 + 120 * noise / np.abs(noise).max() * 2, 0, 255).astype(np.uint8)
    x, y = step
    clips = [levels[100 - t * y : 100 - t * y + side, 100 - t * x : 100 - t * x + side] for t in range(frames)]
    return np.stack(clips)[..., None].repeat(3, axis=-1)


def test_a_true_clip_of_a_world_has_no_warping_error() -> None:
    for balls in (1, 2, 3):
        assert warping(case_of(scene(balls=balls)))["warping_error"] < 1e-5


def test_the_flow_of_what_is_seen_is_that_of_the_exact_state() -> None:
    one = scene()
    exact, seen = disc_flow(one.position, one.radius, 64), flow_of(case_of(one))
    both = exact.holds & seen.holds
    assert both.mean() > 0.85
    np.testing.assert_allclose(seen.step[both], exact.step[both], atol=0.05)
    # In pixels to the right and down: a unit is 6.4 pixels, and y points up in a world.
    moved = (one.position[1] - one.position[0]) * 6.4 * [1, -1]
    inside = np.unique(np.round(exact.step[0][exact.holds[0]], 6), axis=0)
    assert {tuple(row) for row in np.round(moved, 6)} <= {tuple(row) for row in inside}


@pytest.mark.parametrize("way", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_the_flow_of_what_leaves_the_view_does_not_hold(way: tuple[int, int]) -> None:
    # A disc of radius 3, 4 units from the middle, goes on by 2.1 units; a pixel is half a unit, y points up.
    position = np.array([[[5.0, 5.0]]]) + np.array([4.0, 6.1])[:, None, None] * way
    flow = disc_flow(position, np.array([3.0]), 20)
    moved = (flow.step[0] != 0).any(-1)
    y, x = np.mgrid[:20, :20]
    x, y = x + 4.2 * way[0], y - 4.2 * way[1]
    leaves = (x > 19) | (x < 0) | (y > 19) | (y < 0)
    assert (moved & leaves).any()
    assert (moved & ~leaves & flow.holds[0]).any()
    assert not (moved & leaves & flow.holds[0]).any()


def test_a_ball_that_changes_its_colour_in_one_frame_costs_its_area_twice() -> None:
    one = replace(scene(balls=1), colour=("red",))
    still = np.broadcast_to(one.position[:1], one.position.shape).copy()
    one = replace(one, position=still, velocity=np.zeros_like(one.velocity))
    frames = render(one, 64)
    flow = disc_flow(one.position, one.radius, 64)
    red = flow.holds & (frames[:-1, ..., 1] < 10)
    frames[4][frames[4][..., 1] < 10] = (155, 0, 0)
    # A step of 100 levels of red there and back, over the pixels of the ball, in 2 of 7 pairs.
    expected = 2 / 7 * (100 / 255) ** 2 * red[0].sum() / flow.holds[0].sum()
    assert warping_error(frames, flow) == pytest.approx(expected, rel=1e-6)
    assert warping(case_of(one, frames))["warping_error"] == pytest.approx(expected, rel=0.05)


def test_a_ball_that_vanishes_or_grows_costs_more_than_one_that_stays() -> None:
    one = scene(balls=1)
    empty, truth = np.full((64, 64, 3), 255, np.uint8), render(one, 64)
    vanished = truth.copy()
    vanished[5:] = empty
    grown = truth.copy()
    grown[5:] = render(replace(one, radius=1.5 * one.radius), 64)[5:]
    assert warping(case_of(one, vanished))["warping_error"] > 0.005
    assert warping(case_of(one, grown))["warping_error"] > 0.005


def test_flicker_of_the_background_is_its_square() -> None:
    one = scene(balls=1)
    frames = np.full((8, 64, 64, 3), 200, np.uint8)
    frames[1::2] = 190
    assert warping_error(frames, disc_flow(one.position[:, :0], one.radius[:0], 64)) == pytest.approx(
        3 * (10 / 255) ** 2
    )


@pytest.mark.parametrize("step", [(3, 0), (0, -2), (2, 2)])
def test_dis_finds_a_known_shift_and_its_error_is_small(step: tuple[int, int]) -> None:
    frames = textured(3, 96, step)
    flow = dis_flow(frames)
    inner = flow.step[:, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1, 2)), step, atol=0.1)
    still = float(np.square(np.diff(frames / 255, axis=0)).sum(-1).mean())
    assert warping_error(frames, flow) < 0.05 * still


def test_between_pixels_a_picture_is_linear_in_both_directions_and_beyond_its_edges_it_ends() -> None:
    y, x = np.mgrid[:5, :7].astype(float)
    step = np.random.default_rng(0).uniform(-3, 3, (5, 7, 2))
    # To stand on the last row or column, or to stay, is inside.
    step[0, :, 1], step[:, 0, 0], step[2, 3] = 4 - y[0], 6 - x[:, 0], 0
    found, inside = sampled(np.stack([3 * x + 5 * y, x * y], -1), step)
    there = np.stack([x, y], -1) + step
    assert np.array_equal(inside, ((there >= 0) & (there <= [6, 4])).all(-1))
    at_x, at_y = np.clip(there[..., 0], 0, 6), np.clip(there[..., 1], 0, 4)
    np.testing.assert_allclose(found, np.stack([3 * at_x + 5 * at_y, at_x * at_y], -1), atol=1e-12)


def to_the_right(pixels: float, moving: int = 15, part: float = 1.0) -> Flow:
    """Return a flow of 15 steps at 32 pixels, of which the first ones move an upper part of the picture."""
    step = np.zeros((15, 32, 32, 2))
    step[:moving, : int(32 * part), :, 0] = pixels
    return Flow(step, np.ones(step.shape[:-1], bool))


LEAST = 6 * 32 / 256


@pytest.mark.parametrize(
    ("pixels", "moving", "expected"),
    [(1.1 * LEAST, 15, True), (0.9 * LEAST, 15, False), (1.1 * LEAST, 3, False), (1.1 * LEAST, 4, True)],
)
def test_a_clip_moves_from_six_pixels_of_256_on_in_a_quarter_of_the_frames(pixels, moving, expected) -> None:
    assert moves(to_the_right(pixels, moving, part=0.25), 8.0) is expected


def test_of_two_frames_the_one_step_decides() -> None:
    for pixels, expected in ((1.1 * LEAST, True), (0.9 * LEAST, False)):
        assert moves(Flow(*(part[:1] for part in to_the_right(pixels))), 8.0) is expected


def test_the_fastest_twentieth_of_the_pixels_counts() -> None:
    assert not moves(to_the_right(1.1 * LEAST, part=1 / 32), 8.0)
    assert moves(to_the_right(1.1 * LEAST, part=2 / 32), 8.0)


def test_a_faster_clip_is_looked_at_eight_times_a_second() -> None:
    # At 24 frames a second three steps count together: a third of the least motion a frame is enough.
    flow = to_the_right(1.05 * LEAST / 3)
    assert moves(flow, 24.0)
    assert not moves(flow, 8.0)


def test_a_still_clip_and_a_single_frame_do_not_move() -> None:
    still = textured(4, 32, (0, 0))
    found = warping(Case("a", still, still, "", 8.0, 1, None))
    assert found == {"warping_error": pytest.approx(0.0, abs=1e-9), "dynamic_degree_share": 0.0}
    assert warping(Case("a", still[:1], still[:1], "", 8.0, 1, None))["dynamic_degree_share"] == 0.0


def test_frames_too_small_for_dis_are_refused() -> None:
    small = textured(2, 12, (0, 0))
    with pytest.raises(ValueError, match="found frames of 12 x 12, expected at least 16"):
        warping(Case("a", small, small, "", 8.0, 1, None))
