"""Camera: how it turns and zooms, fitted to the optical flow between frames, of which the most is not of things."""

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
# Up to the first share of the detail that flow finds again in the other frame it is guesswork and shows no direction;
# from the second on it shows all of it.
LOST, FOUND = 0.1, 0.4
# Heights of the frame a second from which a flow that differs from the camera's counts less, and rounds of the fit.
APART, ROUNDS = 0.02, 8
# Change of the camera's velocity above which a camera that goes nowhere is held by hand.
SHAKY = 0.05
NAMES = {"pan": ("pan left", "pan right"), "tilt": ("tilt down", "tilt up"), "zoom": ("zoom out", "zoom in")}


class View(NamedTuple):
    """What two frames tell of the camera.

    flow: heights of the frame a second, `h w 2`; most, least: the mean square of the gradient about each pixel in that
    of the two frames with more of it, and with less, as what is in one of them only cannot be followed; lost: the mean
    square of the levels by which the second frame differs from the first where flow leads.
    """

    flow: np.ndarray
    most: np.ndarray
    least: np.ndarray
    lost: np.ndarray


def camera(views: Sequence[View]) -> dict[str, float]:
    """Score what is seen between frames.

    jitter: mean change of the camera's velocity from one pair of frames to the next, in heights a second; pan, tilt:
    its mean velocity, to the right and up, in heights a second; zoom: mean growth a second, as a share of the size,
    above 0 when zooming in. Where the camera cannot be followed pan, tilt and zoom are nearer to 0.
    """
    moves = np.array([movement(view) for view in views])
    turns = moves[:, :2] * [[ramp(share(view.most, PLAIN), THING, PICTURE)] for view in views]
    changes = np.linalg.norm(np.diff(turns, axis=0), axis=1)
    right, down, growth = (moves * [[sure(view)] for view in views]).mean(0).tolist()
    return {"jitter": float(changes.mean()) if len(changes) else 0.0, "pan": -right, "tilt": down, "zoom": growth}


def movement(view: View) -> np.ndarray:
    """Return what the camera does to the picture, as (right, down, growth).

    The sum of the distances between flow and what the camera would make it is the least, so that things that move on
    their own count little. That sum has one minimum, which moves little when flow does.
    """
    height, width = view.least.shape
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    # Of each place: 1, how far it is from the centre, and the flow; the products of all that is fitted are of these.
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
    """Return how sure it is where the camera goes, 0 to 1; before plain ground it counts as still."""
    seen = share(view.least, PLAIN)
    found = share(view.least, PLAIN + view.lost) / max(seen, 1e-9)
    return ramp(seen, THING, PICTURE) * ramp(found, LOST, FOUND)


def share(detail: np.ndarray, against: np.ndarray | float) -> float:
    """Return the share of the picture with detail; where there is as much against it, half."""
    return float(np.mean(detail / (detail + against)))


def ramp(value: float, first: float, last: float) -> float:
    """Return 0 up to the first value, 1 from the last on, and what lies between."""
    return min(max((value - first) / (last - first), 0.0), 1.0)


def camera_motion(pan: float, tilt: float, zoom: float, jitter: float) -> str:
    """Return what the camera does in the words of film makers, or nothing where that is not clear."""
    # What a zoom moves at the upper edge of the frame, half a height from the centre.
    speeds = {"pan": pan, "tilt": tilt, "zoom": zoom / 2}
    name = max(speeds, key=lambda name: abs(speeds[name]))
    if abs(speeds[name]) >= CLEAR:
        return NAMES[name][speeds[name] > 0]
    return "static" if abs(speeds[name]) < STILL and jitter < SHAKY else ""
