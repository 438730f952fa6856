from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.worlds.collision import Collision, elastic
from videodiff.worlds.flight import fly
from videodiff.worlds.phyworld import SPLITS
from videodiff.worlds.scene import SIDE

MADE = {split: Collision(split=split) for split in SPLITS}
EXAMPLES = given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))


@settings(max_examples=60, deadline=None)
@EXAMPLES
def test_momentum_and_energy_are_conserved(seed, split):
    scene = MADE[split].scene(seed)
    mass = scene.radius**2
    momentum, energy = scene.velocity[..., 0] @ mass, scene.velocity[..., 0] ** 2 @ mass
    np.testing.assert_allclose(momentum, momentum[0], atol=1e-9)
    np.testing.assert_allclose(energy, energy[0])


@settings(max_examples=60, deadline=None)
@EXAMPLES
def test_the_closed_form_is_what_flight_from_contact_to_contact_gives(seed, split):
    scene = MADE[split].scene(seed)
    times = np.arange(32) / 10
    position, _, _ = fly(scene.position[0], scene.velocity[0], scene.radius, times, walls=False)
    np.testing.assert_allclose(scene.position, position, atol=1e-9)


@pytest.mark.parametrize("split", SPLITS)
def test_they_meet_8_frames_from_either_end_and_are_seen_2_frames_after(split):
    for scene in map(MADE[split].scene, range(1200)):
        turned = np.flatnonzero((scene.velocity != scene.velocity[0]).any(axis=(1, 2)))[0]
        assert 8 <= turned <= 24
        seen = scene.position[: turned + 2, :, 0]
        assert (seen >= scene.radius - 1e-9).all()
        assert (seen <= SIDE - scene.radius + 1e-9).all()


@settings(max_examples=60, deadline=None)
@EXAMPLES
def test_red_comes_from_the_left_and_blue_from_the_right(seed, split):
    world = MADE[split]
    scene, (r1, r2, v1, v2) = world.scene(seed), world.draw(seed)[0]
    assert scene.colour == ("red", "blue")
    assert scene.position[0, 0, 0] < scene.position[0, 1, 0]
    np.testing.assert_array_equal(scene.velocity[0], [[v1, 0.0], [-v2, 0.0]])
    np.testing.assert_array_equal(scene.radius, [r1, r2])
    assert np.ptp(scene.position[..., 1]) == 0


def test_equal_discs_swap_their_velocities():
    assert elastic(2.0, 2.0, 1.5, -3.0) == pytest.approx((-3.0, 1.5))


def test_training_leaves_out_only_cells_without_room_to_meet():
    r1, r2, v1, v2 = MADE["train"].cells.T
    assert len(r1) < 8**2 * 21**2
    assert [len(np.unique(axis)) for axis in (r1, r2, v1, v2)] == [8, 8, 21, 21]
    assert (SIDE - 2 * (r1 + r2) >= 0.8 * (v1 + v2) - 1e-9).all()


def test_evaluation_leaves_out_small_discs():
    for split in ("in_distribution", "out_of_distribution"):
        assert (MADE[split].cells[:, :2] > 0.5).all()


def test_out_of_distribution_has_nothing_of_the_training_range():
    r, v = np.split(MADE["out_of_distribution"].cells, 2, axis=1)
    inside = ((r >= 0.5) & (r <= 1.5) & (v >= 1) & (v <= 4)).all(axis=1)
    assert not inside.any()
    assert (r > 1.5).any()
    assert (v > 4).any()
    assert (v < 1).any()


def test_a_clip_too_long_for_the_view_is_refused():
    with pytest.raises(ValueError, match="found no room to meet in 320"):
        Collision(frames=320, fps=1.0)
