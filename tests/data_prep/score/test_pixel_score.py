"""The registry of scores: what is declared is what is measured, and a filter knows what there is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import data_prep.score
from data_prep.score.geometry import geometry
from data_prep.score.pixel_score import (
    AS_CODED,
    DEFAULT,
    SHARE,
    WITHOUT_FRAMES,
    PixelScore,
    check_limits,
    known_scores,
    pixel_score,
    pixel_scores,
)
from videodiff.data.video.info import VideoInfo

NOISE = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
MINE = """
from data_prep.score.pixel_score import PixelScore, Scale

def redness(frames, fps):
    return {"redness": float(frames[..., 0].mean())}

SCORE = PixelScore({"redness": Scale("levels", 0.0, 255.0)}, redness)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a score that is one new file of the folder of scores."""
    (tmp_path / "redness.py").write_text(MINE)
    monkeypatch.setattr(data_prep.score, "__path__", [*data_prep.score.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "data_prep.score.redness", raising=False)
    importlib.invalidate_caches()
    return "redness"


@pytest.mark.parametrize("frames", [5, 3, 1])
@pytest.mark.parametrize("name", DEFAULT)
def test_a_score_gives_what_it_declares_within_its_range(name: str, frames: int) -> None:
    score = pixel_score(name)
    found = score(NOISE[:frames], 2.0)
    assert found == score.measure(NOISE[:frames], 2.0)
    assert list(found) == list(score.scales)
    assert all(score.scales[key].least <= value <= score.scales[key].most for key, value in found.items())


def test_all_scores_come_in_the_order_of_their_names_and_are_known() -> None:
    found = list(pixel_scores(NOISE, 2.0))
    assert found == [name for file in DEFAULT for name in pixel_score(file).scales]
    assert known_scores(DEFAULT) == [*WITHOUT_FRAMES, *AS_CODED, *found]
    assert (*geometry(VideoInfo(4, 4, 1, 1.0, 1.0)), "hdr") == WITHOUT_FRAMES
    assert known_scores(DEFAULT, scored=False) == list(WITHOUT_FRAMES)


def test_a_score_of_ones_own_is_one_file_and_one_name(mine: str) -> None:
    assert pixel_scores(NOISE, 2.0, ["quality", mine])["redness"] == pytest.approx(NOISE[..., 0].mean())
    check_limits(["redness", "motion"], known_scores([*DEFAULT, mine]))


@pytest.mark.parametrize("name", ["beauty", "geometry", "os.path", "../motion", ""])
def test_a_name_that_is_no_score_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"scores: found '{name}', expected the name of a file of data_prep/score"):
        pixel_score(name)


def test_numbers_that_are_not_declared_or_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="scores: found the numbers b, expected a"):
        PixelScore({"a": SHARE}, lambda frames, fps: {"b": 1.0})(NOISE, 2.0)
    with pytest.raises(ValueError, match="scores: found 'motion' in motion, expected another name"):
        known_scores(["motion", "motion"])


def test_a_limit_on_a_score_that_nothing_gives_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"filter\.moton: found no such score, expected .*; did you mean 'motion'\?"):
        check_limits(["duration", "moton"], known_scores(DEFAULT))
    with pytest.raises(ValueError, match=r"filter\.motion: found no such score"):
        check_limits(["motion"], known_scores(DEFAULT, scored=False))
