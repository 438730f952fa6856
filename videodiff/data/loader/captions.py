"""Draw a caption of a sample for training, weighted by its origin and length."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from videodiff.data.order.arithmetic import draw
from videodiff.data.samples.shards import Text

UNIT = 2**53


@dataclass(frozen=True)
class CaptionMix:
    """Weights of captions: the probability of a caption is proportional to weight by origin times weight by length.

    `weights`: by origin; `other` stands for all origins that are not listed. `lengths`: `{words: weight}`; each weight
    applies from that many words up to the next entry (1 below the first). A caption with weight 0 is never drawn.
    """

    weights: Mapping[str, float] | None = None
    other: float = 1.0
    lengths: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        for name, weights in (("weights", self.weights), ("lengths", self.lengths), ("other", {"": self.other})):
            for key, weight in (weights or {}).items():
                number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
                if not number or not 0 <= weight < math.inf:
                    raise ValueError(f"captions.{name}: found {key}: {weight!r}, expected a number of at least 0")
        for words in self.lengths or ():
            if isinstance(words, bool) or not isinstance(words, int) or words < 0:
                raise ValueError(f"captions.lengths: found {words!r}, expected a number of words")

    def weigh(self, caption: Text) -> float:
        """Return the weight of a caption."""
        lengths = sorted((self.lengths or {}).items())
        step = bisect.bisect_right(lengths, len(caption.text.split()), key=lambda length: length[0])
        return (self.weights or {}).get(caption.origin, self.other) * (lengths[step - 1][1] if step else 1.0)


EVEN = CaptionMix()


def draw_caption(captions: Sequence[Text], mix: CaptionMix, *key: int) -> str:
    """Draw a caption by the key; the empty caption if none has a weight above 0."""
    weights = [mix.weigh(caption) for caption in captions]
    if not any(weights):
        return ""
    if len(set(weights)) == 1:
        # Equal weights keep the draw of earlier versions, so that old runs continue unchanged.
        return captions[draw(len(captions), *key)].text
    sums = list(accumulate(weights))
    place = bisect.bisect_right(sums, draw(UNIT, *key) / UNIT * sums[-1])
    # The product may round up to the sum; then the last caption with a weight is drawn.
    return captions[place if place < len(sums) else max(n for n, weight in enumerate(weights) if weight)].text


def check_origins(mix: CaptionMix, known: Iterable[Sequence[str] | None]) -> None:
    """Raise if a weight names an origin that no dataset has; `known`: origins of each dataset, None if unknown."""
    lists: list[Any] = list(known)
    if None in lists:
        return
    origins = {origin for each in lists for origin in each}
    for name in mix.weights or ():
        if name not in origins:
            found = ", ".join(sorted(origins)) or "none"
            raise ValueError(
                f"data.captions.weights: found {name!r}, expected origins of captions in the data: {found}"
            )
