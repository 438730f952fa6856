"""Camera: how it turns and zooms, from the optical flow between frames; medians, as things move on their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Heights of the frame a second that count as none, and above which the direction is said.
STILL, CLEAR = 0.01, 0.02
# Mean square of the gradient about a pixel, in levels a pixel, at which its flow counts half: on plain ground there is
# nothing to follow, and flow is what the noise makes it.
PLAIN = 1.0
# Up to the first share of the picture with such detail all of it may be of one thing, which moves on its own; from the
# second on it is the picture. Between the two there is no step, or a clip and its copy would differ.
THING, PICTURE = 0.35, 0.65
# Change of the camera's velocity above which a camera that goes nowhere is held by hand.
SHAKY = 0.05
NAMES = {"pan": ("pan left", "pan right"), "tilt": ("tilt down", "tilt up"), "zoom": ("zoom out", "zoom in")}


class View(NamedTuple):
    """What two frames tell of the camera: flow `h w 2` in heights of the frame a second, and what detail it follows."""

    flow: np.ndarray
    detail: np.ndarray

    @property
    def followed(self) -> np.ndarray:
        """Return where there is more detail than in half of the picture: elsewhere flow is guessed from there."""
        return self.detail >= np.median(self.detail)


def velocity(view: View) -> np.ndarray:
    """Return the median flow, as (right, down): what the camera does, as things that move on their own are fewer.

    Before plain ground it counts as still.
    """
    share = np.clip((np.mean(view.detail >= PLAIN) - THING) / (PICTURE - THING), 0, 1)
    return share * np.median(view.flow[view.followed], axis=0)


def camera(views: Sequence[View], turns: np.ndarray) -> dict[str, float]:
    """Score what is seen between frames; turns: the `velocity` of each, `t 2`.

    pan, tilt: the camera's mean velocity, to the right and up, in heights a second; zoom: mean growth a second, as a
    share of the size, above 0 when zooming in.
    """
    height, width = views[0].detail.shape
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    places = (places - places.mean((0, 1))) / height
    squares = np.square(places).sum(-1)
    far = squares > 0.04  # near the centre a zoom moves nothing
    growth = []
    for view, turn in zip(views, turns, strict=True):
        used = far & view.followed
        rays = places[used] / squares[used, None]
        growth += [np.median(((view.flow[used] - turn) * rays).sum(-1))] if used.any() else [0.0]
    right, down = turns.mean(0).tolist()
    return {"pan": -right, "tilt": down, "zoom": float(np.mean(growth))}


def camera_motion(pan: float, tilt: float, zoom: float, jitter: float) -> str:
    """Return what the camera does in the words of film makers, or nothing where that is not clear."""
    # What a zoom moves at the upper edge of the frame, half a height from the centre.
    speeds = {"pan": pan, "tilt": tilt, "zoom": zoom / 2}
    name = max(speeds, key=lambda name: abs(speeds[name]))
    if abs(speeds[name]) >= CLEAR:
        return NAMES[name][speeds[name] > 0]
    return "static" if abs(speeds[name]) < STILL and jitter < SHAKY else ""
