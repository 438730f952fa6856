"""Read the state of a world back from pixels.

`track` splits every pixel into background and the nearest palette colour, and takes the centroid weighted by coverage,
with the renderer's convention of pixel centres. `track_phyworld` is the parser of PhyWorld's evaluate.py, for
comparison with its published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videodiff.worlds.scene import BACKGROUND, PALETTE, SIDE, SOFTNESS, Scene, pixel_centres

# Largest distance of a pixel from its colour, in grey levels: half the distance of the two nearest palette colours.
FARTHEST = 95.0
LEAST_AREA = 0.5
ROUND = 1.35
# H.264 adds this to the spread, in square pixels: its chroma pixels are twice as wide, (2^2 / 12) along each axis.
BLUR = 2 / 3
# The area that a disc of radius 1 covers: its soft edge takes half of SOFTNESS away.
UNIT_AREA = np.pi * (1 - SOFTNESS / 2)


@dataclass(frozen=True)
class Track:
    """Balls by colour: `position` (t, n, 2) in units, NaN where not `visible`; `area` (t, n) in square units.

    `visible` (t, n): at least LEAST_AREA is there. `whole` (t, n): it is one piece, about as round as a disc.
    """

    colours: tuple[str, ...]
    position: np.ndarray
    area: np.ndarray
    visible: np.ndarray
    whole: np.ndarray

    def of(self, colours: Sequence[str]) -> Track:
        """Return the balls of these colours, in their order."""
        missing = [colour for colour in colours if colour not in self.colours]
        if missing:
            raise ValueError(f"track: found the colours {', '.join(self.colours)}, expected {missing[0]} among them")
        columns = [self.colours.index(colour) for colour in colours]
        arrays = (self.position, self.area, self.visible, self.whole)
        return Track(tuple(colours), *(array[:, columns] for array in arrays))

    def radius(self) -> np.ndarray:
        """Return the radius (t, n) of discs of these areas."""
        return np.sqrt(self.area / UNIT_AREA)

    def count(self) -> np.ndarray:
        """Return the number of balls in each frame (t,); a ball that is not whole counts twice."""
        return (self.visible.astype(int) + (self.visible & ~self.whole)).sum(axis=1)


def track(frames: np.ndarray, colours: Sequence[str] = tuple(PALETTE)) -> Track:
    """Follow the balls of the given colours through frames uint8 `t h w c`; colour alone identifies a ball."""
    check(frames)
    size = frames.shape[1]
    columns = [list(PALETTE).index(colour) for colour in colours]
    coverage, solid = (part[:, columns] for part in unmix(frames))
    coverage = np.where(beside(solid), coverage, 0.0)
    total = coverage.sum(axis=(2, 3))
    across, upright = coverage.sum(axis=2), coverage.sum(axis=3)
    x = pixel_centres(size)
    area = total * (SIDE / size) ** 2
    visible = area >= LEAST_AREA
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.stack([across @ x, upright @ x[::-1]], -1) / total[..., None]
        square = (across @ x**2 + upright @ x[::-1] ** 2) / total
        spread = square - (centre**2).sum(axis=-1)
        # A disc of area A has spread A / (2 pi). Two equal discs side by side have 1.5 times the spread of one disc of
        # their joint area.
        whole = visible & (2 * np.pi * (spread - BLUR * (SIDE / size) ** 2) <= ROUND * area)
    return Track(tuple(colours), np.where(visible[..., None], centre, np.nan), area, visible, whole)


def track_of(scene: Scene) -> Track:
    """Return the track of an exact scene: the result of a perfect parser that also sees outside the view."""
    seen = np.ones(scene.position.shape[:2], dtype=bool)
    return Track(scene.colour, scene.position, np.broadcast_to(UNIT_AREA * scene.radius**2, seen.shape), seen, seen)


def seen_colours(frames: np.ndarray) -> tuple[str, ...]:
    """Return the palette colours that are visible in more than half of the frames, in the palette's order."""
    seen = track(frames)
    return tuple(name for name, visible in zip(seen.colours, seen.visible.T, strict=True) if visible.mean() > 0.5)


def unmix(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coverage of each palette colour (t, colours, h, w) in [0, 1], and where its pixels are solid.

    Each pixel has one colour, the nearest. Edge pixels may be far from every colour, as video keeps colour at half the
    resolution; therefore FARTHEST applies only to solid pixels.
    """
    away = frames.astype(np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    axis = np.asarray(list(PALETTE.values()), dtype=np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    along, length2 = away @ axis.T, (axis**2).sum(axis=1)
    part = np.clip(along / length2, 0.0, 1.0)
    distance2 = (away**2).sum(axis=-1, keepdims=True) - part * (2 * along - part * length2)
    mine = distance2.argmin(axis=-1)[..., None] == np.arange(len(axis))
    solid = mine & (part > 0.5) & (distance2 < (FARTHEST * part) ** 2)
    return np.where(mine, part, 0.0).transpose(0, 3, 1, 2).astype(np.float64), solid.transpose(0, 3, 1, 2)


def beside(solid: np.ndarray) -> np.ndarray:
    """Return the pixels that are solid or touch a solid one; faint noise elsewhere must not move a centroid."""
    wide = np.pad(solid, [(0, 0)] * (solid.ndim - 2) + [(1, 1), (1, 1)])
    tall = wide[..., :, :-2] | wide[..., :, 1:-1] | wide[..., :, 2:]
    return tall[..., :-2, :] | tall[..., 1:-1, :] | tall[..., 2:, :]


def check(frames: np.ndarray) -> None:
    """Raise if frames are not square uint8 `t h w c`."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise ValueError(f"frames: found {frames.dtype} {frames.shape}, expected uint8 (t, size, size, 3)")


def track_phyworld(frames: np.ndarray, colours: Sequence[str] = ("red",)) -> tuple[np.ndarray, np.ndarray]:
    """Parse as PhyWorld's evaluate.py does: position (t, n, 2) and radius (t, n) of a red, or a red and a blue, disc.

    Pixels above 127 count; pixel i is at i / size. A missing disc is put at the right edge, but a missing red disc of
    two at the left edge. It takes the first disc's last y and its own last radius, NaN without one.
    """
    check(frames)
    if tuple(colours) not in (("red",), ("red", "blue")):
        raise ValueError(f"colours: found {tuple(colours)}, expected ('red',) or ('red', 'blue')")
    size = frames.shape[1]
    position, radius = np.full((len(frames), len(colours), 2), np.nan), np.full((len(frames), len(colours)), np.nan)
    for k, frame in enumerate(frames[:, ::-1]):
        last_y, last_radius = (position[k - 1, 0, 1], radius[k - 1]) if k else (np.nan, radius[0])
        high, low = frame > 127, frame < 127
        for disc, (mine, other) in enumerate(((0, 2), (2, 0))[: len(colours)]):
            y, x = np.nonzero(high[..., mine] & low[..., 1] & low[..., other])
            if len(x):
                position[k, disc] = np.array([x.mean(), y.mean()]) / size * SIDE
                radius[k, disc] = np.sqrt(len(x) / np.pi) / size * SIDE
            else:
                edge = 0.0 if len(colours) == 2 and disc == 0 else SIDE
                position[k, disc], radius[k, disc] = (edge, last_y), last_radius[disc]
    return position, radius
