"""Camera: how it turns and zooms, from the optical flow between frames; medians, as things move on their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Heights of the frame a second that count as none, and above which the direction is said.
STILL, CLEAR = 0.01, 0.02
# Change of the camera's velocity above which a camera that goes nowhere is held by hand.
SHAKY = 0.05
NAMES = {"pan": ("pan left", "pan right"), "tilt": ("tilt down", "tilt up"), "zoom": ("zoom out", "zoom in")}


def camera(flows: Sequence[np.ndarray], turns: np.ndarray) -> dict[str, float]:
    """Score flows `h w 2` in heights of the frame a second, as (right, down), by their medians `turns`, `t 2`.

    pan, tilt: the camera's mean velocity, to the right and up, in heights a second; zoom: mean growth a second, as a
    share of the size, above 0 when zooming in.
    """
    height, width = flows[0].shape[:2]
    places = np.stack(np.meshgrid(np.arange(0, width, 4), np.arange(0, height, 4)), -1).astype(np.float32)
    places = (places - places.mean((0, 1))) / height
    squares = np.square(places).sum(-1)
    far = squares > 0.04  # near the centre a zoom moves nothing
    rays = places[far] / squares[far, None]
    growth = [np.median(((flow[::4, ::4] - turn)[far] * rays).sum(-1)) for flow, turn in zip(flows, turns, strict=True)]
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
