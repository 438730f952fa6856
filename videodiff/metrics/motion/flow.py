"""Optical flow, with the pixels for which it is valid: exact for clips of a world, by DIS for others."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from videodiff.metrics.metric import Case
from videodiff.metrics.worlds.parsing import Track, track
from videodiff.worlds.scene import SIDE

# The squared distance by which a flow forward and back may miss its start: 0.01 of both squared lengths, plus this.
RELATIVE, ABSOLUTE = 0.01, 0.5
# The least side of a frame for DIS.
LEAST_SIDE = 16


class Flow(NamedTuple):
    """The displacement of each pixel to the next frame: `step` (t - 1, h, w, 2) in pixels, x to the right, y down.

    `holds` (t - 1, h, w): the pixel is in view in both frames, so its flow is valid.
    """

    step: np.ndarray
    holds: np.ndarray


def flow_of(case: Case) -> Flow:
    """Return the flow of a clip's own frames."""
    if case.scene is None:
        return dis_flow(case.frames)
    return disc_flow(*seen_discs(track(case.frames, case.scene.colour)), case.frames.shape[1])


def seen_discs(seen: Track) -> tuple[np.ndarray, np.ndarray]:
    """Return position (t, n, 2) and radius (n,) of the balls of a clip as if they were rigid and never vanished.

    An unseen ball stays where it was last seen, or where it is first seen later; a ball that is never seen is left out.
    The radius is the median over the frames. So the pixels of a ball that vanishes or changes shape differ from its
    flow.
    """
    balls = np.flatnonzero(seen.visible.any(axis=0))
    position, radius = seen.position[:, balls].copy(), np.zeros(len(balls))
    for n, ball in enumerate(balls):
        frames = np.flatnonzero(seen.visible[:, ball])
        radius[n] = np.median(seen.radius()[frames, ball])
        known = frames[np.maximum(np.searchsorted(frames, np.arange(len(position)), side="right") - 1, 0)]
        position[:, n] = position[known, n]
    return position, radius


def disc_flow(position: np.ndarray, radius: np.ndarray, size: int) -> Flow:
    """Return the flow of discs over a background at rest; position (t, n, 2) and radius (n,) in units.

    It is not valid near an edge, where discs overlap, and for pixels that are covered in the next frame.
    """
    pixel = SIDE / size
    centre = (np.arange(size) + 0.5) * pixel
    place = np.stack(np.broadcast_arrays(centre[None, :], SIDE - centre[:, None]), axis=-1)
    step = np.zeros((len(position) - 1, size, size, 2))
    holds = np.zeros(step.shape[:-1], dtype=bool)
    for t in range(len(position) - 1):
        owner = owners(place, position[t], radius, pixel)
        moved = np.concatenate([position[t + 1] - position[t], np.zeros((1, 2))])[owner]
        step[t] = moved / pixel * np.array([1.0, -1.0])
        later = owners(place + moved, position[t + 1], radius, pixel)
        inside = ((place + moved > pixel / 2) & (place + moved < SIDE - pixel / 2)).all(axis=-1)
        still = (moved == 0).all(axis=-1)
        holds[t] = (owner == later) & (owner != UNCLEAR) & (inside | still)
    return Flow(step, holds)


# A pixel that belongs neither to one disc alone nor to the background.
UNCLEAR = -2


def owners(place: np.ndarray, position: np.ndarray, radius: np.ndarray, margin: float) -> np.ndarray:
    """Return for places (h, w, 2) the disc that each lies in, -1 for the background, UNCLEAR near an edge."""
    found = np.full(place.shape[:-1], -1)
    for disc, (at, r) in enumerate(zip(position, radius, strict=True)):
        away = np.linalg.norm(place - at, axis=-1)
        free = found == -1
        found = np.where((away < r - 1.5 * margin) & free, disc, found)
        found = np.where((away < r + 1.5 * margin) & ~((away < r - 1.5 * margin) & free), UNCLEAR, found)
    return found


def dis_flow(frames: np.ndarray) -> Flow:
    """Return the flow by DIS (arXiv 1603.03590) of frames uint8 `t h w c`; it is valid where the flow back agrees."""
    import cv2

    if min(frames.shape[1:3]) < LEAST_SIDE:
        raise ValueError(
            f"found frames of {frames.shape[1]} x {frames.shape[2]}, expected at least {LEAST_SIDE} a side"
        )
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    step, holds = [], []
    for one, other in pairwise(grey):
        ahead, back = (dis.calc(*pair, None).astype(np.float64) for pair in ((one, other), (other, one)))
        returned, inside = sampled(back, ahead)
        most = RELATIVE * (np.square(ahead).sum(-1) + np.square(returned).sum(-1)) + ABSOLUTE
        step.append(ahead)
        holds.append(inside & (np.square(ahead + returned).sum(-1) < most))
    empty = np.zeros((0, *frames.shape[1:3]))
    return Flow(np.stack(step), np.stack(holds)) if step else Flow(empty[..., None].repeat(2, -1), empty.astype(bool))


def sampled(picture: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture `h w c` at each pixel plus its step (h, w, 2), bilinear, and which of these places lie in it."""
    height, width = picture.shape[:2]
    x = np.arange(width)[None, :] + step[..., 0]
    y = np.arange(height)[:, None] + step[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    upper = picture[top, left] * (1 - fx) + picture[top, left + 1] * fx
    lower = picture[top + 1, left] * (1 - fx) + picture[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy, inside
