"""A scene is the exact state of some coloured discs over time; rendering turns it into frames.

World units: the view is a square of side 10, x to the right, y up, origin at the lower left. Pixel `i` of `n` covers
the interval [i, i + 1] * 10 / n, so its centre lies at (i + 0.5) * 10 / n: renderer and parser share that convention.
PhyWorld (arXiv 2411.02385) puts its pixels at i / (n - 1) when it draws and at i / n when it measures, which alone
makes the velocity error of its own ground truth 0.010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from videodiff.worlds.law import Law

SIDE = 10.0
BACKGROUND = (255, 255, 255)
SOFTNESS = 0.03
PALETTE = {
    "red": (255, 0, 0),
    "yellow": (235, 195, 0),
    "green": (0, 170, 0),
    "cyan": (0, 190, 215),
    "blue": (0, 0, 255),
    "purple": (170, 0, 190),
}


@dataclass(frozen=True)
class Scene:
    """Moving discs: `position` (t, n, 2) in units, `velocity` (t, n, 2) in units per second, `radius` (n,) in units.

    `law` is that of the world that they are from: what moves them, and how a clip of them is measured.
    """

    position: np.ndarray
    velocity: np.ndarray
    radius: np.ndarray
    colour: tuple[str, ...]
    fps: float
    caption: str
    law: Law

    def truth(self) -> dict[str, object]:
        """Return the state as plain JSON values, as it is stored beside the clip."""
        return {
            "position": np.round(self.position, 6).tolist(),
            "velocity": np.round(self.velocity, 6).tolist(),
            "radius": np.round(self.radius, 6).tolist(),
            "colour": list(self.colour),
            "fps": self.fps,
            "walls": self.law.walls,
            "gravity": self.law.gravity,
            "world": self.law.record(),
        }


def pixel_centres(size: int) -> np.ndarray:
    """Return the world coordinate of each of `size` pixel centres along one axis."""
    return (np.arange(size) + 0.5) * SIDE / size


def coverage(position: np.ndarray, radius: np.ndarray, size: int, softness: float, supersample: int) -> np.ndarray:
    """Return how much of each pixel each disc covers: (t, n, h, w) in [0, 1].

    The edge is PhyWorld's: clip((r^2 - d^2) / (softness r^2), 0, 1), averaged over `supersample`^2 points a pixel.
    """
    points = pixel_centres(size * supersample)
    t, n = position.shape[:2]
    covered = np.zeros((t, n, size, size))
    for disc in range(n):
        # Only the square around a disc is computed; at an edge of the view it is moved inside, where the rest is empty.
        side = min(int(np.ceil(2 * radius[disc] * size / SIDE)) + 1, size)
        corner = np.stack([position[:, disc, 0], SIDE - position[:, disc, 1]], -1) - radius[disc]
        first = np.clip(np.floor(corner * size / SIDE), 0, size - side).astype(int)
        fine = first[..., None] * supersample + np.arange(side * supersample)
        x2 = (points[fine[:, 0]] - position[:, disc, :1]) ** 2
        y2 = (points[::-1][fine[:, 1]] - position[:, disc, 1:]) ** 2
        r2 = radius[disc] ** 2
        inside = np.clip((r2 - x2[:, None, :] - y2[:, :, None]) / (softness * r2), 0.0, 1.0)
        cells = first[..., None] + np.arange(side)
        window = (np.arange(t)[:, None, None], disc, cells[:, 1, :, None], cells[:, 0, None, :])
        covered[window] = inside.reshape(t, side, supersample, side, supersample).mean(axis=(2, 4))
    return covered


def render(scene: Scene, size: int, softness: float = SOFTNESS, supersample: int = 4) -> np.ndarray:
    """Draw the scene as square frames, later discs over earlier ones: uint8 `t h w c`."""
    mask = coverage(scene.position, scene.radius, size, softness, supersample)[..., None]
    frames = np.full((len(scene.position), size, size, 3), BACKGROUND, dtype=np.float64)
    for disc, name in enumerate(scene.colour):
        frames += mask[:, disc] * (np.asarray(PALETTE[name], dtype=np.float64) - frames)
    return np.rint(frames).astype(np.uint8)
