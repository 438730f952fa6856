"""Whether a clip shows what its caption says."""

from __future__ import annotations

import numpy as np

from videodiff.metrics.metric import TEXT_TO_VIDEO, Case, Quantity, metric
from videodiff.metrics.worlds.captions import Phrase, nearest, phrases
from videodiff.metrics.worlds.parsing import seen_colours, track
from videodiff.worlds.law import Grammar

FREE_FRAMES = 3
SHARE = Quantity("higher", "", 0.0, 1.0)


def strange(case: Case) -> str:
    """Return why a caption cannot be measured, empty if it can."""
    try:
        phrases(case.caption, case.scene.law.grammar)
    except ValueError:
        return "captions do not have the form of a world"
    return ""


@metric(
    dict.fromkeys(
        ("colour_accuracy", "count_accuracy", "direction_accuracy", "speed_accuracy", "size_accuracy"), SHARE
    ),
    tasks=(TEXT_TO_VIDEO,),
    clips="worlds",
    lacks=strange,
    by_balls=("count_accuracy", "colour_accuracy", "direction_accuracy"),
)
def captions(case: Case) -> dict[str, float]:
    """Measure a clip made from its caption alone."""
    return text_to_video(case.frames, case.caption, case.fps, case.scene.law.grammar)


def text_to_video(frames: np.ndarray, caption: str, fps: float, grammar: Grammar) -> dict[str, float]:
    """Measure whether a clip uint8 `t h w c`, sampled from its caption alone, shows it; every number is in [0, 1].

    colour_accuracy: 1 if exactly the captioned colours are there. count_accuracy: share of frames with the right number
    of balls. direction_accuracy, speed_accuracy, size_accuracy: share of balls that agree with their words in the first
    3 frames, if the caption has such words; direction and speed need more than one frame. An unseen ball counts as
    wrong in everything.
    """
    asked, seen = phrases(caption, grammar), track(frames)
    balls = seen.of([phrase.colour for phrase in asked])
    numbers = {
        "colour_accuracy": float(set(seen_colours(frames)) == {phrase.colour for phrase in asked}),
        "count_accuracy": float((seen.count() == len(asked)).mean()),
    }
    last = min(FREE_FRAMES, len(frames)) - 1
    moved = balls.position[last] - balls.position[0]
    if last > 0:
        numbers["direction_accuracy"] = share([heads(way, phrase) for way, phrase in zip(moved, asked, strict=True)])
    if last > 0 and all(phrase.pace for phrase in asked):
        words = [nearest(speed, grammar.paces) for speed in np.linalg.norm(moved, axis=-1) * fps / last]
        numbers["speed_accuracy"] = share([word == phrase.pace for word, phrase in zip(words, asked, strict=True)])
    if all(phrase.size for phrase in asked):
        radii = np.where(balls.visible, balls.radius(), np.nan)[: last + 1].mean(axis=0)
        words = [nearest(radius, grammar.sizes) for radius in radii]
        numbers["size_accuracy"] = share([word == phrase.size for word, phrase in zip(words, asked, strict=True)])
    return numbers


def heads(way: np.ndarray, phrase: Phrase) -> bool:
    """Return whether a displacement (2,) is within 45 degrees of the direction word; False for NaN."""
    return bool(way @ phrase.heading > np.sqrt(0.5) * np.linalg.norm(way, axis=-1))


def share(right: list[bool]) -> float:
    """Return the share that is right."""
    return float(np.mean(right))
