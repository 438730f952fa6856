from __future__ import annotations

import numpy as np
import pytest

from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola
from videodiff.worlds.phyworld import product
from videodiff.worlds.uniform import Uniform

WORLDS = [Uniform, Parabola, Collision]


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_seed_gives_the_same_scene(world):
    assert np.array_equal(world().scene(11).position, world().scene(11).position)


@pytest.mark.parametrize("world", WORLDS)
def test_a_second_walk_shows_the_same_cell_from_another_start(world):
    made = world(split="in_distribution")
    first, again = made.scene(3), made.scene(3 + len(made.cells))
    assert np.array_equal(first.radius, again.radius)
    assert np.array_equal(first.velocity[0], again.velocity[0])
    assert not np.array_equal(first.position[0], again.position[0])


@pytest.mark.parametrize("world", WORLDS)
def test_splits_draw_different_starts(world):
    one, other = world(split="in_distribution"), world(split="out_of_distribution")
    assert one.draw(5)[1].random() != other.draw(5)[1].random()


@pytest.mark.parametrize("world", WORLDS)
def test_captions_use_the_words_of_the_world(world):
    assert set(world().scene(0).caption.split()) <= set(world.words())


def test_one_walk_through_a_grid_shows_every_cell_once():
    world = Uniform(split="in_distribution")
    shown = np.array([world.draw(seed)[0] for seed in range(30 * 100)])
    grid = product(np.linspace(0.7, 1.4, 30), np.linspace(1, 4, 100))
    assert np.array_equal(shown[np.lexsort(shown.T[::-1])], grid)


def test_the_first_scenes_of_the_walk_already_span_the_ranges():
    world = Uniform()
    radius, speed = np.array([world.draw(seed)[0] for seed in range(200)]).T
    assert radius.mean() == pytest.approx((0.7 + 1.4) / 2, abs=0.05)
    assert speed.mean() == pytest.approx((1 + 4) / 2, abs=0.25)


@pytest.mark.parametrize(("grid", "cells"), [("30k", 100 * 300), ("300k", 300 * 1000)])
def test_grids_have_phyworlds_sizes(grid, cells):
    assert len(Uniform(grid=grid).cells) == cells


def test_in_distribution_is_a_grid_of_30_radii_and_100_speeds():
    cells = Parabola(split="in_distribution").cells
    assert [len(np.unique(column)) for column in cells.T] == [30, 100]


def test_out_of_distribution_has_the_712_cells_that_phyworld_scores():
    # 992 clips in its evaluation set, less those with a radius under 0.6: 7 of 8 small radii in three blocks.
    cells = Uniform(split="out_of_distribution").cells
    assert len(cells) == 992 - 7 * (8 + 16 + 16)
    radius, speed = cells.T
    assert not ((radius >= 0.7) & (radius <= 1.4) & (speed >= 1) & (speed <= 4)).any()
    assert (radius.min(), radius.max(), speed.min(), speed.max()) == (0.6, 2.0, 0.0, 6.0)


@pytest.mark.parametrize(("option", "value"), [("split", "test"), ("grid", "30K")])
def test_an_unknown_choice_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}: found '{value}', expected one of"):
        Uniform(**{option: value})
