from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from videodiff.metrics.worlds.parsing import track_of
from videodiff.metrics.worlds.physics import continuation, motion, phyworld_velocity_error
from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola
from videodiff.worlds.scene import SIDE, Scene, render
from videodiff.worlds.uniform import LAW, Uniform

T, FPS, GIVEN = 12, 10.0, 3
TIME = np.arange(T)[:, None, None] / FPS
CAPTION = "a small red ball moves right slowly"


def flying(velocity=(1.5, 0.0), start=(3.0, 5.0), radius=1.1, colour="red", caption=CAPTION) -> Scene:
    v = np.broadcast_to(np.array(velocity), (T, 1, 2))
    return Scene(np.array(start) + TIME * v, v, np.array([radius]), (colour,), FPS, caption, LAW)


def phyworlds_frames(scene: Scene, size: int) -> np.ndarray:
    grid = np.linspace(0, SIDE, size)
    x, y = scene.position[:, 0].T
    d2 = (grid[None, None, :] - x[:, None, None]) ** 2 + (grid[None, ::-1, None] - y[:, None, None]) ** 2
    mask = np.clip((scene.radius**2 - d2) / (0.03 * scene.radius**2), 0, 1)[..., None]
    return ((1 - mask) * 255 + mask * np.array([255, 0, 0])).astype(np.uint8)


@pytest.mark.parametrize("world", [Uniform(), Parabola(), Collision(), Bouncing(balls={1: 1, 2: 1, 3: 1})])
def test_the_truth_has_next_to_no_error(world):
    for seed in range(5):
        scene = world.scene(seed)
        numbers = continuation(render(scene, 64), scene)
        assert numbers.pop("permanence_share") == 1.0
        assert numbers.pop("phyworld_velocity_error", 0.0) < 0.1
        assert all(0 <= value < 0.1 for value in numbers.values()), numbers


def test_a_velocity_off_by_a_known_vector_is_off_by_its_length():
    scene = flying()
    late = np.maximum(TIME - (GIVEN - 1) / FPS, 0)
    wrong = replace(scene, position=scene.position + late * np.array([0.3, -0.4]))
    numbers = continuation(render(wrong, 64), scene, GIVEN)
    assert numbers["velocity_error"] == pytest.approx(0.5, abs=0.01)
    assert numbers["velocity_error_per_frame"] == pytest.approx(0.5, abs=0.05)
    assert numbers["position_error_last"] == pytest.approx(0.5 * (T - GIVEN) / FPS, abs=0.01)


def test_a_ball_that_stands_still_is_off_by_its_whole_speed_momentum_and_energy():
    scene = flying((1.2, 0.9))
    numbers = continuation(np.repeat(render(scene, 64)[:1], T, axis=0), scene, GIVEN)
    assert numbers["velocity_error"] == pytest.approx(1.5)
    assert numbers["momentum_error"] == pytest.approx(1.0)
    assert numbers["energy_error"] == pytest.approx(1.0)
    assert numbers["permanence_share"] == 1.0


def test_an_error_that_averages_out_shows_in_the_error_per_frame_alone():
    scene = flying()
    swing = 0.1 * np.where(np.arange(T) % 2, 1.0, -1.0)[:, None, None] * np.array([0.0, 1.0])
    numbers = motion(track_of(replace(scene, position=scene.position + swing)), scene, 4)
    assert numbers["velocity_error_per_frame"] == pytest.approx(0.2 * FPS)
    assert numbers["velocity_error"] == pytest.approx(0.2 * FPS / (T - 4 - 1))


def test_given_frames_are_not_scored():
    scene = flying()
    frames = render(scene, 64)
    frames[:GIVEN] = 255
    assert continuation(frames, scene, GIVEN) == continuation(render(scene, 64), scene, GIVEN)


def test_a_vanished_ball_is_missed_and_counts_as_standing_where_it_was_last_seen():
    scene = flying()
    frames = render(scene, 64)
    frames[7:] = 255
    numbers = continuation(frames, scene, GIVEN)
    assert numbers["permanence_share"] == pytest.approx((7 - GIVEN) / (T - GIVEN))
    assert numbers["position_error_last"] == pytest.approx(1.5 * (T - 7) / FPS, abs=0.01)
    assert numbers["shape_drift"] == pytest.approx(1.0, abs=0.02)


def test_a_ball_never_seen_again_stands_at_its_last_given_place():
    scene = flying()
    frames = np.full((T, 64, 64, 3), 255, dtype=np.uint8)
    numbers = continuation(frames, scene, GIVEN)
    assert numbers["velocity_error"] == pytest.approx(1.5)
    assert numbers["position_error_last"] == pytest.approx(1.5 * (T - GIVEN) / FPS)


def test_a_ball_of_another_colour_is_not_the_ball():
    scene = flying()
    assert continuation(render(replace(scene, colour=("green",)), 64), scene)["permanence_share"] == 0.0


def test_a_second_ball_breaks_permanence():
    scene = flying()
    position = np.concatenate([scene.position, np.full((T, 1, 2), 8.0)], axis=1)
    two = replace(scene, position=position, radius=np.array([1.1, 1.0]), colour=("red", "cyan"))
    assert continuation(render(two, 64), scene)["permanence_share"] == 0.0


def test_a_swelling_ball_drifts_by_what_it_swells():
    scene = flying()
    swollen = render(replace(scene, radius=scene.radius * 1.3), 64)
    frames = np.concatenate([render(scene, 64)[:8], swollen[8:]])
    assert continuation(frames, scene)["shape_drift"] == pytest.approx(0.3, abs=0.01)


def test_only_frames_before_the_ball_leaves_the_view_are_scored():
    scene = flying((4.0, 0.0), start=(6.0, 5.0))
    inside = int(((SIDE - 1.1 - 6.0) / 4.0) * FPS) + 1
    frames = render(scene, 64)
    assert GIVEN + 2 <= inside < T
    frames[inside:] = 255
    assert continuation(frames, scene)["permanence_share"] == 1.0
    frames[inside - 1] = 255
    assert continuation(frames, scene)["permanence_share"] < 1.0


def test_bouncing_is_held_against_the_true_mean_velocity_through_the_wall():
    scene = next(s for s in map(Bouncing(frames=16).scene, range(50)) if (s.velocity[-1] != s.velocity[3]).any())
    straight = replace(
        scene, position=scene.position[2] + (TIME[:1] + np.arange(-2, 14)[:, None, None] / 5) * scene.velocity[0]
    )
    truth = (scene.position[-1] - scene.position[3]) / (12 / 5)
    numbers = motion(track_of(straight), scene)
    assert numbers["velocity_error"] == pytest.approx(np.linalg.norm(scene.velocity[0] - truth, axis=-1).mean())


def test_passing_through_each_other_is_wrong_after_the_contact_only():
    scene = Collision().scene(0)
    ghost = replace(scene, position=scene.position[0] + np.arange(32)[:, None, None] / 10 * scene.velocity[0])
    numbers = motion(track_of(ghost), scene)
    change = np.abs(scene.velocity[-1, :, 0] - scene.velocity[0, :, 0]).mean()
    assert numbers["velocity_error_before"] == pytest.approx(0, abs=1e-9)
    assert numbers["velocity_error_after"] == pytest.approx(change)
    # Ghosts keep momentum and energy: what is wrong is who carries them.
    assert numbers["momentum_error_after"] == pytest.approx(0, abs=1e-9)
    assert numbers["energy_error_after"] == pytest.approx(0, abs=1e-9)


def test_stopping_at_the_contact_loses_momentum_and_energy_after_it():
    scene = Collision().scene(0)
    turned = int(np.flatnonzero((scene.velocity != scene.velocity[0]).any(axis=(1, 2)))[0])
    stopped = replace(scene, position=scene.position[np.minimum(np.arange(32), turned)])
    numbers = motion(track_of(stopped), scene)
    momentum = scene.velocity[0, :, 0] * scene.radius**2
    assert numbers["momentum_error_after"] == pytest.approx(abs(momentum.sum()) / np.abs(momentum).sum())
    assert numbers["energy_error_after"] == pytest.approx(1.0)
    assert numbers["energy_error_before"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("given", [11, 12])
def test_a_continuation_without_two_predicted_frames_is_refused(given):
    scene = flying()
    with pytest.raises(ValueError, match="expected at least 2 to measure a velocity"):
        continuation(render(scene, 32), scene, given)


def test_a_clip_of_another_length_is_refused():
    scene = flying()
    with pytest.raises(ValueError, match="frames: found 11, expected the scene's 12"):
        continuation(render(scene, 32)[:-1], scene)


def test_phyworlds_coordinates_alone_make_its_published_floor():
    world, size = Uniform(split="in_distribution"), 256
    errors, speeds = [], []
    for scene in map(world.scene, range(4)):
        errors.append(phyworld_velocity_error(phyworlds_frames(scene, size), scene))
        speeds.append(scene.velocity[0, 0, 0])
    # Drawn at i / (size - 1) and read at i / size: every speed is short by v / size, 0.010 over the training range.
    np.testing.assert_allclose(errors, np.array(speeds) / size, atol=0.003)
    assert round((1 + 4) / 2 / size, 3) == 0.010


def test_phyworlds_error_of_a_collision_is_the_mean_of_before_and_after():
    scene = Collision().scene(0)
    ghost = replace(scene, position=scene.position[0] + np.arange(32)[:, None, None] / 10 * scene.velocity[0])
    change = np.abs(scene.velocity[-1, :, 0] - scene.velocity[0, :, 0]).mean()
    assert phyworld_velocity_error(render(ghost, 256), scene) == pytest.approx(change / 2, abs=0.1)


@pytest.mark.parametrize("last", [5, 6, 8])
def test_phyworlds_error_of_discs_that_do_not_meet_is_that_of_all_frames(last: int):
    scene = next(one for one in map(Collision().scene, range(100)) if (one.velocity[:10] == one.velocity[0]).all())
    scene = replace(scene, position=scene.position[:last], velocity=scene.velocity[:last])
    slower = scene.position[0] + np.arange(last)[:, None, None] / 10 * 0.75 * scene.velocity[0]
    expected = 0.25 * np.abs(scene.velocity[0, :, 0]).mean()
    found = phyworld_velocity_error(render(replace(scene, position=slower), 256), scene)
    assert found == pytest.approx(expected, abs=0.06)


def test_our_pixel_centres_have_no_such_floor():
    world = Uniform()
    errors = [continuation(render(scene, 64), scene)["velocity_error"] for scene in map(world.scene, range(20))]
    assert max(errors) < 0.002
