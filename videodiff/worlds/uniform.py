"""PhyWorld's uniform motion: a red disc moves right at constant speed."""

from __future__ import annotations

import numpy as np

from videodiff.worlds.law import Law
from videodiff.worlds.phyworld import ONE_DISC, SPEED, OneDisc
from videodiff.worlds.scene import SIDE, Scene

LAW = Law("uniform", SPEED, ONE_DISC, measures=("phyworld",))


class Uniform(OneDisc):
    """x = x0 + v t, at any height that leaves 0.5 units above and below."""

    law = LAW

    def scene(self, seed: int) -> Scene:
        """Return the scene of this seed."""
        (radius, speed), rng = self.draw(seed)
        x, y = self.start(rng, radius, speed), rng.uniform(radius + 0.5, SIDE - 0.5 - radius)
        position = np.stack([x + speed * self.times, np.full(self.frames, y)], -1)[:, None]
        velocity = np.broadcast_to([speed, 0.0], position.shape).copy()
        return Scene(position, velocity, np.array([radius]), ("red",), self.fps, "a red ball moves right", LAW)
