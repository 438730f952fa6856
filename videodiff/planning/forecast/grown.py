"""Extend two traces, of few blocks and of some more, to a network of any depth: every figure is linear in the depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from videodiff.planning.forecast.trace import Make, Passes, Weights, passes

# A prime that divides no size of a network.
CLIPS = 1009


@dataclass(frozen=True, eq=False)
class Grown:
    """Two traces, of `few` blocks and of `more`, of `clips` clips each, and the wanted depth."""

    few: Passes
    more: Passes
    blocks: tuple[int, int]
    depth: int
    clips: int

    def of(self, figure: Callable[[Passes], np.ndarray]) -> np.ndarray:
        """Return a figure of the whole network from its values in the two traces."""
        low, high = np.asarray(figure(self.few), float), np.asarray(figure(self.more), float)
        few, more = self.blocks
        return low if few == more else low + (high - low) * (self.depth - few) / (more - few)

    @cached_property
    def weights(self) -> Weights:
        """How many weights the whole network has."""
        found = self.of(lambda one: np.array(one.weights))
        return Weights(*(round(float(n)) for n in found))

    def peak(self, clips: float, gradient: float) -> float:
        """Return the most bytes that the passes hold with `clips` clips and this share of the gradients.

        Activations grow in proportion to clips; gradients, and copies of weights in another type, do not.
        """
        return float(self.of(lambda one: one.peaks(gradient, clips / self.clips)).max())


def traced(make: Make, cycle: int, depth: int, unlike: int = 0, clips: int = CLIPS) -> Grown:
    """Return the operations of a network of `depth` blocks.

    The kinds of block repeat after `cycle` blocks, at least from the `unlike` first ones on. Both traces end with the
    kind of block with which the network ends: whole cycles are missing.
    """
    least = max(cycle, unlike + 1)
    few = least + (depth - least) % cycle
    few, more = (few, few + cycle) if depth > few + cycle else (depth, depth)
    first = passes(make, few, clips)
    return Grown(first, first if few == more else passes(make, more, clips), (few, more), depth, clips)
