"""Positions: coordinates, rotary angles and sinusoids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videodiff.denoiser.position import (
    REFERENCE,
    frame_coordinates,
    frequencies,
    patch_coordinates,
    rotary_table,
    rotate,
    sinusoid,
    space_sinusoid,
    turn,
    turn_complex,
)

QUICK = settings(deadline=None, max_examples=30)
place = st.floats(-20, 20)


def at(*coordinates: float) -> Tensor:
    """Return the rotary table of one token at these coordinates, for heads of width 12."""
    return rotary_table(torch.tensor([coordinates]), 12)


def vector(seed: int) -> Tensor:
    return torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))


@given(a=place, b=place, shift=place)
@QUICK
def test_the_product_of_rotated_vectors_depends_on_the_difference_of_places_alone(
    a: float, b: float, shift: float
) -> None:
    here = rotate(vector(0), at(a)) @ rotate(vector(1), at(b)).T
    there = rotate(vector(0), at(a + shift)) @ rotate(vector(1), at(b + shift)).T
    torch.testing.assert_close(here, there, rtol=0, atol=2e-4)


@given(a=place)
@QUICK
def test_a_rotation_keeps_lengths_and_the_one_at_zero_is_none(a: float) -> None:
    turned = rotate(vector(0), at(a))
    torch.testing.assert_close(turned.norm(), vector(0).norm())
    assert torch.equal(rotate(vector(0), at(0.0)), vector(0))


def test_every_pair_of_channels_turns_at_its_own_frequency() -> None:
    # With one axis and six pairs, pair k turns by 100^(-k / 5) a unit of the coordinate.
    wanted = [100 ** (-k / 5) * 0.7 for k in range(6)]
    turned = rotate(vector(0), at(0.7)).view(6, 2)
    plain = vector(0).view(6, 2)
    for k, angle in enumerate(wanted):
        first = plain[k, 0] * math.cos(angle) - plain[k, 1] * math.sin(angle)
        second = plain[k, 0] * math.sin(angle) + plain[k, 1] * math.cos(angle)
        torch.testing.assert_close(turned[k], torch.stack([first, second]))


@pytest.mark.parametrize("head_width", [8, 12, 64, 72])
def test_a_turn_in_real_numbers_is_the_one_in_complex_numbers(head_width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(3, 2, 50, head_width // 2, 2, generator=generator)
    table = rotary_table(torch.randn(50, 3, generator=generator) * 10, head_width)
    real, complex_ = turn(pairs, table), turn_complex(pairs, table)
    assert (real - complex_).norm() / complex_.norm() < 1e-6
    assert not torch.allclose(real, pairs)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("head_width", [8, 16, 64, 72])
def test_the_channel_pairs_are_dealt_out_to_the_axes(axes: int, head_width: int) -> None:
    tables = []
    for axis in range(axes):
        coordinates = torch.zeros(1, axes)
        coordinates[0, axis] = 1.0
        tables.append(rotary_table(coordinates, head_width)[0, :, 0] != 1)
    moved = torch.stack(tables)
    assert moved.shape == (axes, head_width // 2)
    assert (moved.sum(0) == 1).all(), "every pair belongs to one axis"
    assert int(moved.sum(1).max() - moved.sum(1).min()) <= 1, "the axes share evenly"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_keeps_the_type(dtype: torch.dtype) -> None:
    assert rotate(vector(0).to(dtype), at(1.0)).dtype == dtype


def test_frames_are_at_whole_numbers() -> None:
    assert frame_coordinates(4).tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(("h", "w"), [(4, 4), (8, 2), (3, 5), (1, 1)])
def test_patches_lie_around_the_middle_of_a_view_of_constant_area(h: int, w: int) -> None:
    places = patch_coordinates(h, w).view(h, w, 2)
    spacing = REFERENCE / math.sqrt(h * w)
    torch.testing.assert_close(places.mean((0, 1)), torch.zeros(2), rtol=0, atol=1e-5)
    for axis, n in ((0, h), (1, w)):
        along = places.select(1 - axis, 0)[:, axis]
        assert torch.allclose(along.diff(), torch.tensor(spacing))
        assert along.min() == pytest.approx(-(n - 1) / 2 * spacing)


def test_a_view_twice_as_fine_covers_the_same_places() -> None:
    fine, coarse = patch_coordinates(8, 8).view(4, 2, 4, 2, 2), patch_coordinates(4, 4).view(4, 4, 2)
    torch.testing.assert_close(fine.mean((1, 3)), coarse)


def test_frequencies_fall_geometrically_from_one_to_the_longest_wave() -> None:
    torch.testing.assert_close(frequencies(4, 1000.0), torch.tensor([1.0, 0.1, 0.01, 0.001]))
    assert frequencies(1, 1000.0).tolist() == [1.0]


def test_a_sinusoid_is_the_cosines_then_the_sines() -> None:
    value = torch.tensor([[0.5, 2.0]])
    embedded = sinusoid(value, 4, longest=100.0)
    assert embedded.shape == (1, 2, 4)
    wanted = [math.cos(2.0), math.cos(0.02), math.sin(2.0), math.sin(0.02)]
    torch.testing.assert_close(embedded[0, 1], torch.tensor(wanted))


def test_every_patch_of_a_view_has_an_embedding_of_its_own() -> None:
    embedded = space_sinusoid(patch_coordinates(6, 4), 16)
    assert embedded.shape == (24, 16)
    assert torch.pdist(embedded).min() > 0.1
