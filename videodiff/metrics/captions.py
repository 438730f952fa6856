"""What a world's caption asks for, one phrase a ball: "a large red ball moves left slowly and a ..."."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from videodiff.worlds.bouncing import DIRECTIONS, SIZES, SPEEDS
from videodiff.worlds.scene import PALETTE

PHRASE = re.compile(
    rf"a (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{'|'.join(PALETTE)}) ball (?:moves|falls) "
    rf"(?P<direction>{'|'.join(DIRECTIONS)})(?: (?P<pace>{'|'.join(SPEEDS)}))?"
)


@dataclass(frozen=True)
class Phrase:
    """One ball of a caption; `size` and `pace` are None where the caption leaves them open."""

    colour: str
    direction: str
    size: str | None
    pace: str | None

    def heading(self) -> np.ndarray:
        """Return the unit vector (2,) of the direction word."""
        angle = DIRECTIONS[self.direction]
        return np.array([np.cos(angle), np.sin(angle)])


def phrases(caption: str) -> list[Phrase]:
    """Return the balls of a caption in its order; a phrase of another form is an error."""
    found = [PHRASE.fullmatch(phrase) for phrase in caption.split(" and ")]
    if None in found:
        wrong = caption.split(" and ")[found.index(None)]
        raise ValueError(f"caption: found {wrong!r}, expected 'a [size] colour ball moves direction [pace]'")
    return [Phrase(**match.groupdict()) for match in found]
