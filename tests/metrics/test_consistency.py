from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.consistency import motion_smoothness, temporal_flickering


def levels(*values: int) -> np.ndarray:
    return np.broadcast_to(np.array(values, dtype=np.uint8)[:, None, None, None], (len(values), 4, 6, 3))


def test_flicker_is_the_mean_step_of_255():
    assert temporal_flickering(levels(0, 51, 0)) == pytest.approx(1 - 51 / 255)
    assert temporal_flickering(levels(0, 255, 0, 255)) == 0.0


def test_a_still_clip_and_a_single_frame_are_perfect():
    for frames in (levels(7, 7, 7, 7), levels(7)):
        assert temporal_flickering(frames) == motion_smoothness(frames) == 1.0


def test_a_step_down_counts_as_much_as_a_step_up():
    assert temporal_flickering(levels(200, 100)) == temporal_flickering(levels(100, 200))


def test_a_steady_change_is_smooth():
    assert motion_smoothness(levels(0, 10, 20, 30, 40)) == 1.0


def test_an_odd_frame_off_its_neighbours_mean_is_not_smooth():
    assert motion_smoothness(levels(0, 51, 0, 0, 0)) == pytest.approx(1 - (51 + 0) / 2 / 255)


def test_even_frames_are_the_ones_that_are_kept():
    assert motion_smoothness(levels(0, 25, 50, 25, 0)) == 1.0


def test_a_last_odd_frame_without_a_follower_is_not_judged():
    assert motion_smoothness(levels(0, 10, 20, 255)) == 1.0
