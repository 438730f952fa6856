from __future__ import annotations

import numpy as np
import pytest

from videodiff.metrics.worlds.captions import Phrase, nearest, phrases
from videodiff.worlds.bouncing import GRAMMAR, Bouncing
from videodiff.worlds.collision import Collision
from videodiff.worlds.parabola import Parabola


def test_every_word_of_a_phrase_is_read():
    assert phrases("a large red ball moves left slowly and a small blue ball moves up quickly", GRAMMAR) == [
        Phrase("red", np.pi, "large", "slowly"),
        Phrase("blue", np.pi / 2, "small", "quickly"),
    ]


def test_size_and_pace_may_be_left_open():
    assert phrases("a red ball moves right", GRAMMAR) == [Phrase("red", 0.0, None, None)]


def test_headings_are_unit_vectors_with_y_up():
    headings = [phrases(f"a red ball moves {way}", GRAMMAR)[0].heading for way in ("right", "up", "left", "down")]
    np.testing.assert_allclose(headings, [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-12)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "slowly"),
        (1.5, "slowly"),
        (2.4, "slowly"),
        (2.6, "quickly"),
        (4.0, "quickly"),
        (9.0, "quickly"),
        (np.nan, None),
    ],
)
def test_a_value_has_the_word_whose_range_is_nearest(value, word):
    assert nearest(value, {"slowly": (1.0, 2.0), "quickly": (3.0, 5.0)}) == word


@pytest.mark.parametrize("world", [Bouncing(balls={1: 1, 2: 1, 3: 1}), Collision(), Parabola()])
def test_the_captions_of_every_world_are_read_ball_by_ball(world):
    for scene in map(world.scene, range(30)):
        assert tuple(phrase.colour for phrase in phrases(scene.caption, world.law.grammar)) == scene.colour


@pytest.mark.parametrize("caption", ["", "a pink ball moves left", "a red ball", "a red ball moves left and"])
def test_a_caption_of_another_form_is_refused(caption):
    with pytest.raises(ValueError, match=r"caption: found '.*', expected 'a "):
        phrases(caption, GRAMMAR)
