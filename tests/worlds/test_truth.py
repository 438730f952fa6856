"""What the truth beside a clip tells, and what is read of one that tells less or nonsense."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from videodiff.worlds.bouncing import Bouncing
from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola
from videodiff.worlds.truth import TruthError, read_scene
from videodiff.worlds.uniform import Uniform

WORLDS = [Bouncing(balls={1: 1, 2: 1, 3: 1}), Uniform(frames=8), Parabola(frames=8), Collision()]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.law.name)
def test_truth_comes_back_from_json_with_the_law_of_its_world(world):
    scene = world.scene(3)
    back = read_scene(json.loads(json.dumps(scene.truth())), scene.caption)
    np.testing.assert_allclose(back.position, scene.position, atol=1e-6)
    assert (back.colour, back.fps, back.caption) == (scene.colour, scene.fps, scene.caption)
    assert back.law == world.law


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.law.name)
def test_a_truth_from_before_worlds_had_names_is_measured_as_it_was(world):
    scene = world.scene(3)
    truth = scene.truth()
    del truth["world"]
    assert read_scene(truth, scene.caption).law == world.law


def test_the_oldest_truth_names_no_walls_and_no_gravity():
    truth = Bouncing().scene(0).truth()
    del truth["world"], truth["walls"], truth["gravity"]
    law = read_scene(truth, "").law
    assert (law.name, law.walls, law.gravity) == ("bouncing", True, 0.0)


def test_the_world_decides_what_is_measured_whatever_the_walls():
    truth = Uniform(frames=8).scene(0).truth() | {"walls": True}
    law = read_scene(truth, "a red ball moves right").law
    assert (law.walls, law.measures) == (True, ("phyworld",))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("position", None, "truth.position: found nothing"),
        ("radius", "abc", "truth: found no state of a scene"),
        ("position.5.0.1", float("nan"), r"position: found .*, expected frames x 1 x 2 finite numbers"),
        ("velocity.0.0.0", float("inf"), "velocity: found .*, expected 8 x 1 x 2 finite numbers"),
        ("velocity", [[[1.0, 0.0]]], "velocity: found .*, expected 8 x 1 x 2 finite numbers"),
        ("position", [], r"position: found \[\], expected frames x 1 x 2 finite numbers"),
        ("radius", [1.0, 1.0], r"radius: found \[1.0, 1.0\], expected 1 finite numbers above 0"),
        ("radius", [0.0], "radius: found .*, expected 1 finite numbers above 0"),
        ("fps", float("nan"), "fps: found nan, expected 1 finite numbers above 0"),
        ("gravity", float("nan"), "gravity: found nan, expected a number"),
        ("colour", ["pink"], "colour: found 'pink', expected some of red, "),
        ("colour", "red", "colour: found 'red', expected a list of words"),
        ("world", "uniform", "world: found 'uniform', expected an object"),
        ("world.name", "", "world.name: found '', expected the name"),
        ("world.speeds", [1], r"world.speeds: found \[1\], expected \[least, most\]"),
        ("world.speeds", [1, float("nan")], "world.speeds: found nan, expected a number"),
        ("world.measures", ["phyworld", "all"], "world.measures: found 'all', expected some of phyworld, contact"),
        ("world.grammar", None, "world.grammar: found nothing"),
        ("world.grammar.directions", ["right"], r"world.grammar.directions: found \['right'\], expected an object"),
        ("world.grammar.sizes", {"small": 1}, "world.grammar.sizes.small: found 1, expected"),
        ("world.grammar.colours", "red", "world.grammar.colours: found 'red', expected a list of words"),
        ("world.grammar.most", True, "world.grammar.most: found True, expected a number of balls"),
    ],
)
def test_a_truth_of_another_form_names_the_key(place, value, message):
    truth = copy.deepcopy(Uniform(frames=8).scene(0).truth())
    *way, last = place.split(".")
    node = truth
    for name in way:
        node = node[int(name) if name.isdecimal() else name]
    last = int(last) if last.isdecimal() else last
    if value is None:
        del node[last]
    else:
        node[last] = value
    with pytest.raises(TruthError, match=message):
        read_scene(truth, "a red ball moves right")
