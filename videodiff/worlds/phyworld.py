"""What PhyWorld's three tasks share (Kang et al. 2024, arXiv 2411.02385): ranges, grids of cells and their splits.

A cell is one choice of the latent values (radii and speeds); where it starts is drawn from the seed. Training walks
the Cartesian grid of the training ranges; evaluation walks PhyWorld's own lists: for one disc 30 x 100 cells in
distribution, and the 712 of 992 cells out of distribution that it scores (it drops discs too small for its parser).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videodiff.worlds.law import Grammar, Law

SPLITS = ("train", "in_distribution", "out_of_distribution")
GRIDS = ("30k", "300k", "3m")
SPEED = (1.0, 4.0)
SLOW, FAST = (0.0, 0.8), (4.5, 6.0)
SMALLEST_SCORED = 0.6
# One vocabulary for both worlds of one disc, so that a text encoder made for one reads the other.
ONE_DISC = Grammar(("red",), ("moves", "falls"), {"right": 0.0})


class PhyWorld:
    """Draw scenes by seed: seed s shows cell s of a shuffled walk through all `cells` (cells, values), again and again.

    `grid` is the size of the training set and matters for split="train" only.
    """

    law: Law

    def __init__(self, frames: int = 32, fps: float = 10.0, split: str = "train", grid: str = "30k") -> None:
        if split not in SPLITS:
            raise ValueError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}")
        if grid not in GRIDS:
            raise ValueError(f"grid: found {grid!r}, expected one of {', '.join(GRIDS)}")
        self.frames, self.fps, self.split = frames, fps, split
        self.times = np.arange(frames) / fps
        cells = self._cells(grid)
        self.cells = cells[np.random.default_rng(0).permutation(len(cells))]

    @classmethod
    def words(cls) -> list[str]:
        """Return every word a caption can contain."""
        return cls.law.grammar.words()

    def draw(self, seed: int) -> tuple[np.ndarray, np.random.Generator]:
        """Return the cell of this seed, and the generator of what is left to chance."""
        return self.cells[seed % len(self.cells)], np.random.default_rng([seed, 0x0B0D, SPLITS.index(self.split)])

    def _cells(self, grid: str) -> np.ndarray:
        raise NotImplementedError


class OneDisc(PhyWorld):
    """A red disc of some radius launched to the right at some speed; it may leave the view.

    cells: (cells, 2) of radius and speed.
    """

    def start(self, rng: np.random.Generator, radius: float, speed: float) -> float:
        """Return x at the start: the disc stays wholly in view for 3/4 of the clip (24 frames) where there is room."""
        last = 10.0 - radius - 0.75 * self.frames / self.fps * speed
        if last < radius:
            last = radius + rng.uniform(0.0, 0.5)
        return rng.uniform(radius, last)

    def _cells(self, grid: str) -> np.ndarray:
        if self.split == "out_of_distribution":
            return one_disc_out_of_distribution()
        sizes = {"30k": (100, 300), "300k": (300, 1000), "3m": (1000, 3000)}
        radii, speeds = sizes[grid] if self.split == "train" else (30, 100)
        return product(np.linspace(0.7, 1.4, radii), np.linspace(*SPEED, speeds))


def one_disc_out_of_distribution() -> np.ndarray:
    """Return PhyWorld's out-of-distribution cells (cells, 2): radius, speed or both outside the training range."""
    small, large = np.linspace(0.3, SMALLEST_SCORED, 8), np.linspace(1.5, 2.0, 8)
    slow, fast = np.linspace(*SLOW, 16), np.linspace(*FAST, 16)
    blocks = [
        product(small, np.linspace(*SPEED, 8)),
        product(np.linspace(0.7, 1.4, 8), slow),
        product(small, slow),
        product(large, np.linspace(*SPEED, 16)),
        product(np.linspace(0.7, 1.4, 10), fast),
        product(large, fast),
        product(small, fast),
        product(large, slow),
    ]
    cells = np.concatenate(blocks)
    return cells[cells[:, 0] >= SMALLEST_SCORED]


def product(*axes: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the Cartesian product of the axes, one row a cell."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
