"""Motion: dense optical flow by DIS (Kroeger et al. 2016, arXiv 1603.03590) between frames half a second apart."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from data_prep.score.camera import PLAIN, View, camera, velocity
from data_prep.score.pixel_score import SHARE, PixelScore, Scale

# Flow is computed on frames of this height, blurred by so many pixels: what an encoder adds or takes is finer.
HEIGHT, BLUR = 96, 1.0
# Thinner than this DIS crashes the process.
THINNEST = 32
# Heights of the frame a second above which a pixel moves; compression noise in still footage stays below.
STILL = 0.01
# Pixels about one over which its detail is taken.
ABOUT = 9
# One pair of frames counts up to so many times as much as they do on average: of motion too fast to follow flow is
# guesswork.
BURST = 2.0


def motion(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Score uint8 `t h w c` at `fps`, best 2; speeds in heights of the frame a second; all 0 for one frame.

    motion: mean speed; moving: share of the pixels that move at all; jitter: mean change of the camera's velocity (see
    `velocity`) from one pair of frames to the next; pan, tilt, zoom: see `camera`.
    """
    greys = [prefiltered(frame) for frame in frames]
    details = [detail(grey) for grey in greys]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flows = [dis.calc(a, b, None) * (fps / a.shape[0]) for a, b in pairwise(greys)]
    if not flows:
        return {"motion": 0.0, "moving": 0.0, "jitter": 0.0, "pan": 0.0, "tilt": 0.0, "zoom": 0.0}
    details = [np.maximum(a, b) for a, b in pairwise(details)]
    trust = [detail / (detail + PLAIN) for detail in details]
    speeds = [cv2.magnitude(flow[..., 0], flow[..., 1]) * share for flow, share in zip(flows, trust, strict=True)]
    means = np.array([speed.mean() for speed in speeds])
    views = [View(flow[::4, ::4], detail[::4, ::4]) for flow, detail in zip(flows, details, strict=True)]
    turns = np.array([velocity(view) for view in views])
    changes = np.linalg.norm(np.diff(turns, axis=0), axis=1)
    return {
        "motion": float(np.minimum(means, BURST * means.mean()).mean()),
        "moving": float(np.mean([speed > STILL for speed in speeds])),
        "jitter": float(changes.mean()) if len(changes) else 0.0,
        **camera(views, turns),
    }


def prefiltered(frame: np.ndarray) -> np.ndarray:
    """Return a frame as flow is computed on: grey, small and a little blurred."""
    return cv2.GaussianBlur(cv2.cvtColor(resized(frame), cv2.COLOR_RGB2GRAY), (0, 0), BLUR)


def detail(grey: np.ndarray) -> np.ndarray:
    """Return the mean square of the gradient about each pixel, float32 `h w`."""
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1)))
    return cv2.blur(across * across + down * down, (ABOUT, ABOUT))


def resized(frame: np.ndarray) -> np.ndarray:
    """Scale a frame to `HEIGHT` pixels, where it is higher, and to `THINNEST` where a side is less."""
    height, width = frame.shape[:2]
    scale = min(HEIGHT / height, 1.0)
    scale = max(scale, THINNEST / (min(height, width)))
    size = max(round(width * scale), THINNEST), max(round(height * scale), THINNEST)
    return frame if size == (width, height) else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


HEIGHTS = Scale("heights of the frame per second")
TURN = Scale("heights of the frame per second", -math.inf)
SCORE = PixelScore(
    {
        "motion": HEIGHTS,
        "moving": SHARE,
        "jitter": HEIGHTS,
        "pan": TURN,
        "tilt": TURN,
        "zoom": Scale("of the size per second", -math.inf),
    },
    motion,
    fewest=2,
)
