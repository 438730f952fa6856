"""PhyWorld's parabola: a red disc is launched to the right near the top and falls."""

from __future__ import annotations

import numpy as np

from videodiff.worlds.law import Law
from videodiff.worlds.phyworld import ONE_DISC, SPEED, OneDisc
from videodiff.worlds.scene import SIDE, Scene

GRAVITY = -2.5
LAW = Law("parabola", SPEED, ONE_DISC, gravity=GRAVITY, measures=("phyworld",))


class Parabola(OneDisc):
    """x = x0 + v t and y = y0 + g t^2 / 2, with g = -2.5 units/s^2; the disc starts 0.5 to 1.5 under the top."""

    law = LAW

    def scene(self, seed: int) -> Scene:
        """Return the scene of this seed."""
        (radius, speed), rng = self.draw(seed)
        x, y = self.start(rng, radius, speed), rng.uniform(SIDE - 1.5 - radius, SIDE - 0.5 - radius)
        t = self.times
        position = np.stack([x + speed * t, y + GRAVITY * t**2 / 2], -1)[:, None]
        velocity = np.stack([np.full(self.frames, speed), GRAVITY * t], -1)[:, None]
        return Scene(position, velocity, np.array([radius]), ("red",), self.fps, "a red ball falls right", LAW)
