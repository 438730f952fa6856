"""Words that scores add to a caption, such as "High motion." and "Camera motion: pan left."."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.score.camera import camera_motion

KEYS = {"score", "min", "max", "text"}


def check_words(rules: Sequence[Mapping[str, Any]]) -> None:
    """Raise where a rule is not `{score: name, min: limit, max: limit, text: words}`, with one limit at least."""
    for rule in rules:
        limits = [rule[side] for side in ("min", "max") if rule.get(side) is not None]
        good = set(rule) <= KEYS and rule.get("score") and rule.get("text") and limits
        if not good or not all(isinstance(limit, (int, float)) and limit == limit for limit in limits):
            raise ValueError(f"caption.words: found {dict(rule)}, expected score, text, and min or max or both")


def score_words(scores: Mapping[str, float | None], rules: Sequence[Mapping[str, Any]], camera: bool) -> list[str]:
    """Return the sentences of the rules that a clip meets, limits included, then the sentences for its camera.

    A score that was never computed is a ValueError; a score without a value gives no words.
    """
    sentences = []
    for rule in rules:
        found = scored(scores, rule["score"])
        low, high = rule.get("min"), rule.get("max")
        if found is not None and (low is None or found >= low) and (high is None or found <= high):
            sentences.append(sentence(rule["text"]))
    if camera:
        moves = camera_motion(*(scored(scores, name) or 0.0 for name in ("pan", "tilt", "zoom", "jitter")))
        sentences += [sentence(f"camera motion: {moves}")] * bool(moves)
    return sentences


def scored(scores: Mapping[str, float | None], name: str) -> float | None:
    """Return a score; ValueError where no clip was ever given it."""
    if name not in scores:
        raise ValueError(f"caption: found no score {name}, expected one of {', '.join(sorted(scores))}")
    return scores[name]


def sentence(words: str) -> str:
    """Return words as a sentence."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def with_words(caption: str, sentences: Sequence[str]) -> str:
    """Return a caption with sentences after it."""
    return " ".join([sentence(caption), *sentences]) if sentences else caption
