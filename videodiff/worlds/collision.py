"""PhyWorld's collision: a red disc from the left meets a blue one from the right, head on and without loss."""

from __future__ import annotations

import numpy as np

from videodiff.worlds.law import Grammar, Law
from videodiff.worlds.phyworld import FAST, SLOW, SPEED, PhyWorld, product
from videodiff.worlds.scene import SIDE, Scene

SMALL, LARGE = (0.3, 0.4), (1.7, 2.0)
RADIUS = (0.5, 1.5)
GRAMMAR = Grammar(("red", "blue"), ("moves",), {"right": 0.0, "left": np.pi}, most=2)
LAW = Law("collision", SPEED, GRAMMAR, measures=("phyworld", "contact"))
Value = float | np.ndarray


class Collision(PhyWorld):
    """Two discs on one line, completely in view at the start; mass is radius squared.

    `cells`: (cells, 4), both radii and both speeds. The discs meet at least a quarter of the clip (8 frames) after its
    start and before its end, and at least 2 frames before one leaves the view; cells without room are left out.
    """

    law = LAW

    def scene(self, seed: int) -> Scene:
        """Return the scene of this seed."""
        (r1, r2, v1, v2), rng = self.draw(seed)
        meet, x1 = self._start(rng, r1, r2, v1, v2)
        x2 = x1 + r1 + r2 + meet * (v1 + v2)
        y = rng.uniform(max(r1, r2) + 0.5, SIDE - 0.5 - max(r1, r2))
        before = np.array([v1, -v2])
        after = np.array(elastic(r1**2, r2**2, v1, -v2))
        t = self.times[:, None]
        x = np.array([x1, x2]) + before * np.minimum(t, meet) + after * np.maximum(t - meet, 0.0)
        speed = np.where(t < meet, before, after)
        caption = "a red ball moves right and a blue ball moves left"
        position = np.stack([x, np.full_like(x, y)], -1)
        velocity = np.stack([speed, np.zeros_like(speed)], -1)
        return Scene(position, velocity, np.array([r1, r2]), ("red", "blue"), self.fps, caption, LAW)

    def _start(self, rng: np.random.Generator, r1: float, r2: float, v1: float, v2: float) -> tuple[float, float]:
        """Return the time of the contact and the start of the red disc."""
        first, last = self._meeting(r1, r2, v1, v2)
        if max(r1, r2) > 2 * min(r1, r2):
            # A light disc soon leaves the view after the contact; PhyWorld lets such pairs meet early.
            last = min(last, 1.25 * first)
        meet = rng.uniform(first, last)
        back, on = self._leaving(r1, r2, v1, v2)
        left = max(r1, r1 + back - v1 * meet)
        right = SIDE - r1 - 2 * r2 - v1 * meet - max(v2 * meet, on)
        return meet, rng.uniform(left, max(left, right))

    def _meeting(self, r1: Value, r2: Value, v1: Value, v2: Value) -> tuple[float, Value]:
        """Return the earliest and the latest time of contact; there is no room if the latest is before the earliest."""
        quarter = 0.25 * self.frames / self.fps
        back, on = self._leaving(r1, r2, v1, v2)
        room = SIDE - 2 * r1 - 2 * r2
        with np.errstate(divide="ignore"):
            most = np.minimum(np.minimum(room / (v1 + v2), (room - on) / v1), (room - back) / v2)
        return quarter, np.minimum(most, 3 * quarter)

    def _leaving(self, r1: Value, r2: Value, v1: Value, v2: Value) -> tuple[Value, Value]:
        """Return how far the red disc moves left and the blue one right within 2 frames after the contact.

        Both must stay in view for so long, or no velocity after the contact could be measured.
        """
        after1, after2 = elastic(r1**2, r2**2, v1, -v2)
        return np.maximum(-after1, 0.0) * 2 / self.fps, np.maximum(after2, 0.0) * 2 / self.fps

    def _cells(self, grid: str) -> np.ndarray:
        if self.split == "train":
            radii, speeds = {"30k": (8, 21), "300k": (14, 41), "3m": (26, 71)}[grid]
            r, v = np.linspace(*RADIUS, radii), np.linspace(*SPEED, speeds)
            cells = product(r, r, v, v)
        else:
            cells = evaluation_cells(self.split)
        cells = cells[cells[:, 2] + cells[:, 3] > 0]
        first, last = self._meeting(*cells.T)
        if not (last >= first).any():
            raise ValueError(
                f"frames, fps: found no room to meet in {self.frames / self.fps} s, expected a shorter clip"
            )
        return cells[last >= first]


def elastic(m1: Value, m2: Value, v1: Value, v2: Value) -> tuple[Value, Value]:
    """Return both velocities after a head-on collision without loss."""
    centre = (m1 * v1 + m2 * v2) / (m1 + m2)
    return 2 * centre - v1, 2 * centre - v2


def evaluation_cells(split: str) -> np.ndarray:
    """Return PhyWorld's evaluation cells (cells, 4), without discs of radius 0.5 or less, which it does not score."""
    if split == "in_distribution":
        r, v = np.linspace(*RADIUS, 4), np.linspace(*SPEED, 4)
        cells = product(r, r, v, v)
    else:
        r, v = np.linspace(*RADIUS, 3), np.linspace(*SPEED, 3)
        low_v, high_v, low_r, high_r = (np.linspace(*a, n) for a, n in ((SLOW, 4), (FAST, 4), (SMALL, 3), (LARGE, 4)))
        blocks = [product(r, r, low_v, high_v)]
        for odd_r, odd_v in ((low_r, low_v), (high_r, high_v)):
            blocks += [product(odd_r, r, v, v), product(r, r, odd_v, v), product(odd_r, odd_r, v, v)]
            blocks += [product(r, r, odd_v, odd_v), product(odd_r, r, odd_v, v), product(odd_r, odd_r, odd_v, odd_v)]
        cells = np.concatenate(blocks)
    return cells[(cells[:, :2] > RADIUS[0]).all(axis=1)]
