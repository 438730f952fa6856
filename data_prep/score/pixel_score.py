"""A score of pixels: a function of the frames of a clip, in a file of this folder; `scores` in conf/prep names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

import numpy as np

DEFAULT = ("motion", "text", "overlay", "quality")
# Scores that need no shown frames: they follow from the geometry and the coded frames.
WITHOUT_FRAMES = ("width", "height", "short_side", "aspect", "frames", "fps", "duration", "hdr")
AS_CODED = ("letterbox", "interlaced")


class Scale(NamedTuple):
    """The meaning of a number of a score: its unit (empty for a pure number) and its range."""

    unit: str = ""
    least: float = 0.0
    most: float = math.inf


SHARE = Scale("", 0.0, 1.0)


@dataclass(frozen=True)
class PixelScore:
    """The object `SCORE` in a file of scores.

    scales: the meaning of each of its numbers, by name. measure: returns the numbers for frames uint8 `t h w c`,
    cropped and upright, and their rate. fewest: with fewer frames all numbers are 0.
    """

    scales: Mapping[str, Scale]
    measure: Callable[[np.ndarray, float], Mapping[str, float]]
    fewest: int = 1

    def __call__(self, frames: np.ndarray, fps: float) -> dict[str, float]:
        """Return the numbers; ValueError if they are not the declared ones."""
        if len(frames) < self.fewest:
            return dict.fromkeys(self.scales, 0.0)
        found = dict(self.measure(frames, fps))
        if found.keys() != self.scales.keys():
            raise ValueError(f"scores: found the numbers {', '.join(found)}, expected {', '.join(self.scales)}")
        return found


def pixel_score(name: str) -> PixelScore:
    """Return the score in the file of this name; ValueError if this folder has no such file."""
    found = None
    if name.isidentifier():
        try:
            found = getattr(import_module(f"data_prep.score.{name}"), "SCORE", None)
        except ModuleNotFoundError as error:
            if error.name != f"data_prep.score.{name}":
                raise
    if not isinstance(found, PixelScore):
        raise ValueError(f"scores: found {name!r}, expected the name of a file of data_prep/score with a SCORE")
    return found


def pixel_scores(frames: np.ndarray, fps: float, names: Sequence[str] = DEFAULT) -> dict[str, float]:
    """Return every number of these scores of uint8 `t h w c` at `fps`, in their order."""
    return {name: value for score in map(pixel_score, names) for name, value in score(frames, fps).items()}


def known_scores(names: Sequence[str], scored: bool = True) -> list[str]:
    """Return every number of a clip without models; scored: whether its frames are measured."""
    if not scored:
        return list(WITHOUT_FRAMES)
    found: list[str] = [*WITHOUT_FRAMES, *AS_CODED]
    for file in names:
        for name in pixel_score(file).scales:
            if name in found:
                raise ValueError(f"scores: found {name!r} in {file}, expected another name: another score gives it too")
            found.append(name)
    return found


def check_limits(limits: Sequence[str], known: Sequence[str]) -> None:
    """Raise if a limit is on a score that no clip gets."""
    for name in limits:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            beside = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"filter.{name}: found no such score, expected one of {', '.join(sorted(known))}{beside}")
