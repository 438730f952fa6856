from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.worlds.reference import (
    PREDICTORS,
    clamped,
    constant_velocity,
    law,
    mean_speed,
    measure,
    static,
)
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola
from videodiff.worlds.uniform import Uniform

WORLDS = [Uniform(), Parabola(), Collision(), Bouncing(frames=16, balls={1: 1, 2: 1, 3: 1})]


def mean_error(predictor, world, clips: int = 12, name: str = "velocity_error") -> float:
    return float(np.mean([measure(predictor, world.scene(seed))[name] for seed in range(clips)]))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("predictor", PREDICTORS.values())
def test_given_frames_are_kept_and_all_frames_predicted(predictor, world):
    scene = world.scene(2)
    made = predictor(scene)
    assert np.array_equal(made.position[:3], scene.position[:3])
    assert made.position.shape == made.velocity.shape == scene.position.shape
    assert np.isfinite(made.position).all()


def test_the_last_frame_held_is_wrong_by_the_speed():
    scene = Uniform().scene(1)
    assert measure(static, scene)["velocity_error"] == pytest.approx(scene.velocity[0, 0, 0])


def test_constant_velocity_is_the_oracle_of_uniform_motion():
    assert mean_error(constant_velocity, Uniform()) < 0.01


def test_constant_velocity_misses_what_gravity_adds():
    scene = Parabola().scene(0)
    fallen = np.mean(np.diff(scene.position[3:, 0, 1])) * 10 - scene.velocity[2, 0, 1]
    made = constant_velocity(scene)
    assert np.mean(np.diff(made.position[3:, 0, 1])) * 10 == pytest.approx(scene.velocity[2, 0, 1], abs=0.02)
    assert abs(fallen) > 1


@pytest.mark.parametrize("world", WORLDS)
def test_the_law_from_parsed_frames_stays_close_to_the_truth(world):
    assert mean_error(law, world) < 0.05
    assert mean_error(law, world, name="position_error_last") < 0.1


def test_without_walls_constant_velocity_leaves_the_bouncing_world():
    world = Bouncing(frames=24)
    ends = np.array([constant_velocity(world.scene(seed)).position[-1, 0] for seed in range(20)])
    assert ((ends < 0) | (ends > 10)).any()


def test_mean_speed_is_wrong_by_the_distance_to_the_middle_of_the_range():
    scene = Uniform().scene(4)
    assert measure(mean_speed, scene)["velocity_error"] == pytest.approx(abs(2.5 - scene.velocity[0, 0, 0]), abs=0.01)


def test_mean_speed_keeps_the_direction():
    scene = Bouncing(frames=8).scene(0)
    made = mean_speed(scene).velocity[3, 0]
    assert np.linalg.norm(made) == pytest.approx((1.0 + 3.6) / 2)
    assert made @ scene.velocity[2, 0] == pytest.approx(
        np.linalg.norm(made) * np.linalg.norm(scene.velocity[2, 0]), rel=1e-3
    )


def test_a_ball_at_rest_is_sent_where_its_caption_says():
    world = Uniform(split="out_of_distribution")
    rest = next(scene for scene in map(world.scene, range(712)) if scene.velocity[0, 0, 0] == 0)
    np.testing.assert_allclose(clamped(rest).velocity[-1, 0], [1.0, 0.0], atol=1e-9)


def test_clamping_changes_nothing_in_the_training_range():
    scene = Collision().scene(3)
    inside = 1.05 < np.abs(scene.velocity[0, :, 0]).min() < 3.95
    assert inside
    np.testing.assert_allclose(clamped(scene).position, law(scene).position)


def test_clamping_is_wrong_by_the_distance_to_the_training_range():
    # Over all 712 cells that PhyWorld scores: what a perfect case-based model would get.
    world = Uniform(split="out_of_distribution")
    scenes = [world.scene(seed) for seed in range(0, 712, 8)]
    speeds = np.array([scene.velocity[0, 0, 0] for scene in scenes])
    expected = np.abs(np.clip(speeds, 1, 4) - speeds)
    errors = [measure(clamped, scene)["velocity_error"] for scene in scenes]
    np.testing.assert_allclose(errors, expected, atol=0.05)
    assert np.mean(errors) == pytest.approx(expected.mean(), abs=0.01)


def test_one_given_frame_has_no_velocity_and_two_have_one():
    scene = Uniform(frames=8).scene(0)
    assert np.array_equal(constant_velocity(scene, given=1).velocity[1:], np.zeros((7, 1, 2)))
    np.testing.assert_allclose(constant_velocity(scene, given=2).velocity[-1], scene.velocity[0], atol=0.02)


def test_under_gravity_the_speed_is_that_of_the_launch():
    scene = Parabola().scene(0)
    launched = mean_speed(scene).velocity[3, 0] - [0.0, scene.law.gravity * 3 / scene.fps]
    assert np.linalg.norm(launched) == pytest.approx(np.mean(scene.law.speeds))


def test_a_ball_outside_the_view_cannot_be_read():
    scene = Uniform(frames=8).scene(0)
    with pytest.raises(ValueError, match="expected every ball in view"):
        law(
            type(scene)(
                scene.position + 50, scene.velocity, scene.radius, scene.colour, scene.fps, scene.caption, scene.law
            )
        )
