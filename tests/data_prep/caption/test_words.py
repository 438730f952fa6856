"""Which words scores add to a caption, and which frames a captioner sees."""

from __future__ import annotations

import pytest

from data_prep.caption.frames import spread
from data_prep.caption.words import score_words


@pytest.mark.parametrize(("found", "said"), [(0.29, []), (0.3, ["Some motion."]), (0.5, ["Some motion."]), (0.51, [])])
def test_the_limits_of_words_are_included(found: float, said: list[str]) -> None:
    rule = {"score": "motion", "min": 0.3, "max": 0.5, "text": "some motion"}
    assert score_words({"motion": found}, [rule], camera=False) == said
    assert score_words({"motion": None}, [rule], camera=False) == []


@pytest.mark.parametrize(
    ("frames", "count", "seen"), [(8, 2, [2, 6]), (9, 3, [1, 4, 7]), (3, 8, [0, 1, 2]), (1, 4, [0])]
)
def test_the_middle_frame_of_each_part_is_seen(frames: int, count: int, seen: list[int]) -> None:
    assert spread(frames, count) == seen
