"""The bouncing world: one to three discs between four walls, described by a caption.

Discs fly straight until they touch a wall or each other and bounce without loss; the state is advanced from contact to
contact in closed form, never by small steps. Some (colour, speed) pairs are held out of training: a model that draws
them has combined two words that it never saw together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from videodiff.worlds.flight import fly, overlap
from videodiff.worlds.law import Grammar, Law
from videodiff.worlds.scene import PALETTE, SIDE, Scene

DIRECTIONS = {"right": 0.0, "up": 0.5 * np.pi, "left": np.pi, "down": 1.5 * np.pi}
SIZES = {"small": (1.0, 1.2), "large": (1.6, 1.9)}
SPEEDS = {"slowly": (1.0, 1.6), "quickly": (2.8, 3.6)}
HELD_OUT = (("red", "slowly"), ("blue", "quickly"), ("green", "slowly"))
MOST_TRIES = 10_000
GRAMMAR = Grammar(tuple(PALETTE), ("moves",), DIRECTIONS, SIZES, SPEEDS, most=len(PALETTE))
LAW = Law("bouncing", (SPEEDS["slowly"][0], SPEEDS["quickly"][1]), GRAMMAR, walls=True)


class Bouncing:
    """Draw scenes by seed: the same seed gives the same scene on every machine.

    `balls` maps a number of discs to its share, `held_out` lists the (colour, speed) pairs that `split="train"` never
    shows and `split="held_out"` always shows. No disc touches anything in its first `free_frames` frames, so the
    direction in the caption can be seen.
    """

    law = LAW

    def __init__(
        self,
        frames: int = 8,
        fps: float = 5.0,
        balls: dict[int, float] | None = None,
        held_out: Sequence[Sequence[str]] = HELD_OUT,
        split: str = "train",
        free_frames: int = 3,
        jitter_degrees: float = 20.0,
    ) -> None:
        if split not in ("train", "held_out", "all"):
            raise ValueError(f"split: found {split!r}, expected train, held_out or all")
        self.frames, self.fps, self.free_frames, self.split = frames, fps, free_frames, split
        self.balls = {int(n): share for n, share in (balls or {1: 1.0}).items()}
        self.jitter = np.deg2rad(jitter_degrees)
        self.held_out = {tuple(pair) for pair in held_out}
        self._check()

    def _check(self) -> None:
        pairs = {(colour, pace) for colour in PALETTE for pace in SPEEDS}
        if not self.held_out <= pairs:
            raise ValueError(f"held_out: found {sorted(self.held_out - pairs)}, expected pairs of a colour and a pace")
        if self.split == "held_out" and not self.held_out:
            raise ValueError("held_out: found no pair, expected at least one for split held_out")
        full = [colour for colour in PALETTE if all((colour, pace) in self.held_out for pace in SPEEDS)]
        if full and self.split != "all":
            raise ValueError(f"held_out: found every pace of {full[0]}, expected at least one left for training")
        fine = all(1 <= n <= len(PALETTE) and share >= 0 for n, share in self.balls.items())
        if not fine or not 0 < sum(self.balls.values()) < math.inf:
            raise ValueError(
                f"balls: found {self.balls}, expected shares of 1 to {len(PALETTE)} discs, one of them above 0"
            )

    @staticmethod
    def words() -> list[str]:
        """Return every word a caption can contain."""
        return GRAMMAR.words()

    def scene(self, seed: int) -> Scene:
        """Return the scene of this seed."""
        rng = np.random.default_rng([seed, 0x0B0C])
        n = int(rng.choice(list(self.balls), p=np.array(list(self.balls.values())) / sum(self.balls.values())))
        names = self._colours(rng, n)
        words = [self._words(rng, name, first=disc == 0) for disc, name in enumerate(names)]
        radius = np.array([rng.uniform(*SIZES[size]) for size, _, _ in words])
        speed = np.array([rng.uniform(*SPEEDS[pace]) for _, _, pace in words])
        times = np.arange(self.frames) / self.fps
        for _ in range(MOST_TRIES):
            angle = np.array([DIRECTIONS[way] for _, way, _ in words]) + rng.uniform(-self.jitter, self.jitter, n)
            start = rng.uniform(radius[:, None], SIDE - radius[:, None], (n, 2))
            if overlap(start, radius):
                continue
            flight = fly(start, speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1), radius, times)
            if flight[2] > (self.free_frames - 1) / self.fps:
                break
        else:
            raise ValueError(
                f"scene {seed}: found no place for {n} discs that touch nothing in {self.free_frames} frames "
                f"in {MOST_TRIES} tries, expected fewer discs or a smaller free_frames"
            )
        phrases = [f"a {s} {c} ball moves {way} {pace}" for c, (s, way, pace) in zip(names, words, strict=True)]
        return Scene(flight[0], flight[1], radius, tuple(names), self.fps, " and ".join(phrases), LAW)

    def _colours(self, rng: np.random.Generator, n: int) -> list[str]:
        names = rng.permutation(list(PALETTE)).tolist()
        if self.split == "held_out":
            # The first disc shows the held-out pair, so its colour must have one.
            first = str(rng.choice(sorted({colour for colour, _ in self.held_out})))
            names = [first] + [name for name in names if name != first]
        return names[:n]

    def _words(self, rng: np.random.Generator, colour: str, first: bool) -> tuple[str, str, str]:
        size, way = str(rng.choice(list(SIZES))), str(rng.choice(list(DIRECTIONS)))
        paces = [pace for pace in SPEEDS if self.split == "all" or self._allowed(colour, pace, first)]
        return size, way, str(rng.choice(paces))

    def _allowed(self, colour: str, pace: str, first: bool) -> bool:
        wanted = self.split == "held_out" and first
        return ((colour, pace) in self.held_out) == wanted
