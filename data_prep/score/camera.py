"""Camera: its pan, tilt and zoom, fitted to the optical flow between frames; most of the flow is the camera's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Speeds in heights of the frame per second: below the first the camera is still, above the second it has a direction.
STILL, CLEAR = 0.01, 0.02
# Mean square of the gradient around a pixel, in levels per pixel, at which its flow counts half. Flow on plain ground
# is noise.
PLAIN = 1.0
# Share of the picture with detail. Up to the first value the detail may belong to one moving thing; from the second on
# it is the scene. The change is gradual, so that a clip and its copy do not differ.
THING, PICTURE = 0.35, 0.65
# Share of the detail that flow finds in the other frame. Up to the first value the flow is a guess and counts nothing;
# from the second on it counts fully.
LOST, FOUND = 0.1, 0.4
# Distance from the camera's flow, in heights of the frame per second, above which flow counts less; rounds of the fit.
APART, ROUNDS = 0.02, 8
# Change of the camera's velocity above which a camera without direction is handheld.
SHAKY = 0.05
NAMES = {"pan": ("pan left", "pan right"), "tilt": ("tilt down", "tilt up"), "zoom": ("zoom out", "zoom in")}


class View(NamedTuple):
    """The flow between two frames, and how reliable it is.

    flow: heights of the frame per second, `h w 2`. most, least: the larger and the smaller mean square of the gradient
    around each pixel in the two frames; detail in only one of them cannot be followed. lost: the mean square difference
    of the first frame and the second frame shifted back by the flow, in levels.
    """

    flow: np.ndarray
    most: np.ndarray
    least: np.ndarray
    lost: np.ndarray


def camera(views: Sequence[View]) -> dict[str, float]:
    """Score the motion of the camera.

    jitter: mean change of its velocity between successive pairs of frames, in heights per second. pan, tilt: its mean
    velocity to the right and up, in heights per second. zoom: mean growth per second as a share of the size, positive
    when zooming in. If the camera cannot be followed, pan, tilt and zoom are nearer to 0.
    """
    moves = np.array([movement(view) for view in views])
    turns = moves[:, :2] * [[ramp(share(view.most, PLAIN), THING, PICTURE)] for view in views]
    changes = np.linalg.norm(np.diff(turns, axis=0), axis=1)
    right, down, growth = (moves * [[sure(view)] for view in views]).mean(0).tolist()
    return {"jitter": float(changes.mean()) if len(changes) else 0.0, "pan": -right, "tilt": down, "zoom": growth}


def movement(view: View) -> np.ndarray:
    """Fit the motion of the picture that the camera causes: (right, down, growth).

    The fit minimizes the sum of distances between the flow and the camera's flow, so things that move on their own
    count little. This sum has one minimum, which changes little when the flow changes little.
    """
    height, width = view.least.shape
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    # Columns for each pixel: 1, its offset from the centre, its flow. The normal equations need only their products.
    place = np.stack([np.ones(x.size), x.ravel() / height, y.ravel() / height, *view.flow.reshape(-1, 2).T])
    place = place.astype(np.float32)
    weight = trust = (view.least / (view.least + PLAIN + view.lost)).ravel()
    for _ in range(ROUNDS):
        sums = ((place * weight) @ place.T).astype(float)
        (count, to_right, to_foot), spread = sums[0, :3], sums[1, 1] + sums[2, 2]
        squares = np.array([[count, 0, to_right], [0, count, to_foot], [to_right, to_foot, spread]])
        wanted = sums[0, 3], sums[0, 4], sums[1, 3] + sums[2, 4]
        move = np.linalg.solve(squares + 1e-9 * np.eye(3), wanted).astype(np.float32)
        rest = place[3:] - move[:2, None] - move[2] * place[1:3]
        weight = trust / np.sqrt(rest[0] ** 2 + rest[1] ** 2 + APART**2)
    return move


def sure(view: View) -> float:
    """Return the confidence in the camera's motion, 0 to 1; 0 on plain ground."""
    seen = share(view.least, PLAIN)
    found = share(view.least, PLAIN + view.lost) / max(seen, 1e-9)
    return ramp(seen, THING, PICTURE) * ramp(found, LOST, FOUND)


def share(detail: np.ndarray, against: np.ndarray | float) -> float:
    """Return the share of the picture with detail; a pixel at the threshold counts half."""
    return float(np.mean(detail / (detail + against)))


def ramp(value: float, first: float, last: float) -> float:
    """Return a linear ramp: 0 up to the first value, 1 from the last value on."""
    return min(max((value - first) / (last - first), 0.0), 1.0)


def camera_motion(pan: float, tilt: float, zoom: float, jitter: float) -> str:
    """Return the motion of the camera in words of film makers, empty if it is not clear."""
    # The speed of a zoom at the upper edge of the frame, half a height from the centre.
    speeds = {"pan": pan, "tilt": tilt, "zoom": zoom / 2}
    name = max(speeds, key=lambda name: abs(speeds[name]))
    if abs(speeds[name]) >= CLEAR:
        return NAMES[name][speeds[name] > 0]
    return "static" if abs(speeds[name]) < STILL and jitter < SHAKY else ""
