"""Parse the caption of a world, one phrase per ball: "a large red ball moves left slowly and a ..."."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from videodiff.worlds.law import Grammar, Range


@dataclass(frozen=True)
class Phrase:
    """One ball of a caption; `size` and `pace` are None if the caption does not state them.

    `angle`: the direction in radians from the right, counterclockwise.
    """

    colour: str
    angle: float
    size: str | None
    pace: str | None

    @property
    def heading(self) -> np.ndarray:
        """The unit vector (2,) of the direction word."""
        return np.array([np.cos(self.angle), np.sin(self.angle)])


def phrases(caption: str, grammar: Grammar) -> list[Phrase]:
    """Return the balls of a caption in their order; ValueError for a phrase of another form."""
    form = pattern(
        *(tuple(words) for words in (grammar.colours, grammar.verbs, grammar.directions, grammar.sizes, grammar.paces))
    )
    found = [form.fullmatch(phrase) for phrase in caption.split(" and ")]
    if None in found:
        wrong = caption.split(" and ")[found.index(None)]
        raise ValueError(
            f"caption: found {wrong!r}, expected 'a [size] colour ball {'|'.join(grammar.verbs)} direction [pace]'"
        )
    return [
        Phrase(match["colour"], grammar.directions[match["direction"]], match["size"], match["pace"]) for match in found
    ]


@lru_cache
def pattern(
    colours: tuple[str, ...],
    verbs: tuple[str, ...],
    directions: tuple[str, ...],
    sizes: tuple[str, ...],
    paces: tuple[str, ...],
) -> re.Pattern[str]:
    """Return the pattern of a phrase with these words; without size words a phrase has no size."""
    return re.compile(
        rf"a (?:(?P<size>{one_of(sizes)}) )?(?P<colour>{one_of(colours)}) ball (?:{one_of(verbs)}) "
        rf"(?P<direction>{one_of(directions)})(?: (?P<pace>{one_of(paces)}))?"
    )


def one_of(words: tuple[str, ...]) -> str:
    """Return a pattern that matches any of these words; without words it matches nothing."""
    return "|".join(map(re.escape, words)) or r"(?!)"


def nearest(value: float, words: dict[str, Range]) -> str | None:
    """Return the word with the range nearest to a value, None for NaN."""
    if np.isnan(value):
        return None
    return min(words, key=lambda word: max(words[word][0] - value, value - words[word][1], 0.0))
