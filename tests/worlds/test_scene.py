from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.worlds.bouncing import LAW
from videodiff.worlds.scene import PALETTE, SIDE, SOFTNESS, Scene, coverage, pixel_centres, render


def one_disc(x: float, y: float, radius: float, colour: str = "red") -> Scene:
    return Scene(
        np.array([[[x, y]]]), np.zeros((1, 1, 2)), np.array([radius]), (colour,), 10.0, f"a {colour} ball", LAW
    )


def coverage_everywhere(x: float, y: float, radius: float, size: int, supersample: int) -> np.ndarray:
    fine = pixel_centres(size * supersample)
    d2 = (fine[None, :] - x) ** 2 + (fine[::-1, None] - y) ** 2
    soft = np.clip((radius**2 - d2) / (SOFTNESS * radius**2), 0, 1)
    return soft.reshape(size, supersample, size, supersample).mean(axis=(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-4, 14),
    y=st.floats(-4, 14),
    radius=st.floats(0.3, 6.0),
    size=st.sampled_from([1, 7, 16, 33]),
    supersample=st.sampled_from([1, 4]),
)
def test_coverage_is_that_of_every_point_of_the_view(x, y, radius, size, supersample):
    found = coverage(np.array([[[x, y]]]), np.array([radius]), size, SOFTNESS, supersample)[0, 0]
    np.testing.assert_allclose(found, coverage_everywhere(x, y, radius, size, supersample), atol=1e-12)


def test_coverage_adds_up_to_the_area_of_a_soft_disc():
    found = coverage(np.array([[[4.0, 6.0]]]), np.array([1.5]), 64, SOFTNESS, 4).sum() * (SIDE / 64) ** 2
    assert found == pytest.approx(np.pi * 1.5**2 * (1 - SOFTNESS / 2), rel=1e-3)


def test_a_disc_in_the_middle_is_drawn_symmetrically():
    frame = render(one_disc(SIDE / 2, SIDE / 2, 2.0), 32)[0]
    assert np.array_equal(frame, frame[::-1])
    assert np.array_equal(frame, frame[:, ::-1])


def test_y_points_up_and_x_to_the_right():
    frame = render(one_disc(8.0, 9.0, 0.9), 20)[0]
    assert tuple(frame[2, 16]) == PALETTE["red"]
    assert (frame[10:] == 255).all()
    assert (frame[:, :10] == 255).all()


def test_a_later_disc_covers_an_earlier_one():
    position = np.full((1, 2, 2), 5.0)
    scene = Scene(position, np.zeros_like(position), np.array([2.0, 1.0]), ("red", "blue"), 10.0, "", LAW)
    frame = render(scene, 40)[0]
    assert tuple(frame[20, 20]) == PALETTE["blue"]
    assert tuple(frame[20, 14]) == PALETTE["red"]
