from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.worlds.phyworld import SPLITS
from videodiff.worlds.scene import SIDE
from videodiff.worlds.uniform import Uniform

MADE = {split: Uniform(split=split) for split in SPLITS}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
def test_the_disc_moves_right_at_the_speed_of_its_cell(seed, split):
    world = MADE[split]
    scene, (radius, speed) = world.scene(seed), world.draw(seed)[0]
    np.testing.assert_allclose(np.diff(scene.position[:, 0, 0]) * 10, speed)
    np.testing.assert_allclose(scene.velocity[:, 0], np.tile([speed, 0.0], (32, 1)))
    assert scene.radius[0] == radius
    assert np.ptp(scene.position[:, 0, 1]) == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
def test_the_disc_starts_in_view_and_clear_of_top_and_bottom(seed, split):
    scene = MADE[split].scene(seed)
    (x, y), radius = scene.position[0, 0], scene.radius[0]
    assert radius <= x <= SIDE - radius
    assert radius + 0.5 <= y <= SIDE - radius - 0.5


def test_a_slow_disc_stays_in_view_for_24_frames():
    scenes = [scene for scene in map(MADE["train"].scene, range(300)) if scene.velocity[0, 0, 0] < 2]
    assert len(scenes) > 50
    assert all(scene.position[23, 0, 0] + scene.radius[0] <= SIDE for scene in scenes)


def test_a_fast_disc_leaves_to_the_right():
    fast = [scene for scene in map(MADE["out_of_distribution"].scene, range(50)) if scene.velocity[0, 0, 0] > 5]
    assert fast
    assert all(scene.position[-1, 0, 0] > SIDE for scene in fast)


def test_nothing_stops_at_the_edge():
    scene = MADE["train"].scene(0)
    assert (scene.law.name, scene.law.walls, scene.law.gravity) == ("uniform", False, 0.0)


@pytest.mark.parametrize(("frames", "fps"), [(1, 10.0), (8, 5.0)])
def test_other_lengths_and_rates_are_legal(frames, fps):
    assert Uniform(frames=frames, fps=fps).scene(0).position.shape == (frames, 1, 2)
