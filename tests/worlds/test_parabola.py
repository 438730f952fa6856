from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.worlds.parabola import Parabola
from videodiff.worlds.phyworld import SPLITS
from videodiff.worlds.scene import SIDE

MADE = {split: Parabola(split=split) for split in SPLITS}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
def test_the_disc_is_launched_level_and_falls_at_two_and_a_half(seed, split):
    world = MADE[split]
    scene, speed = world.scene(seed), world.draw(seed)[0][1]
    x, y = scene.position[:, 0].T
    np.testing.assert_allclose(np.diff(x) * 10, speed)
    np.testing.assert_allclose(np.diff(y, n=2) * 100, -2.5)
    np.testing.assert_allclose(scene.velocity[0, 0], [speed, 0.0])
    # The mean of both ends is the exact slope of a parabola.
    mean = (scene.velocity[1:, 0] + scene.velocity[:-1, 0]) / 2
    np.testing.assert_allclose(np.diff(scene.position[:, 0], axis=0) * 10, mean)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
def test_the_disc_starts_near_the_top(seed, split):
    scene = MADE[split].scene(seed)
    assert 0.5 <= SIDE - scene.position[0, 0, 1] - scene.radius[0] <= 1.5


def test_the_scene_knows_its_gravity():
    assert MADE["train"].scene(0).law.gravity == -2.5
