"""Motion: dense optical flow by DIS (Kroeger et al. 2016, arXiv 1603.03590) between frames half a second apart."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from data_prep.score.camera import PLAIN, View, camera
from data_prep.score.pixel_score import SHARE, PixelScore, Scale

# Flow is computed on frames of this height, blurred by BLUR pixels: the errors of encoders are finer than that.
HEIGHT, BLUR = 96, 1.0
# DIS crashes the process on frames with a shorter side.
THINNEST = 32
# A pixel moves above this speed, in heights of the frame per second; compression noise stays below.
STILL = 0.01
# Side of the neighbourhood over which the detail of a pixel is averaged.
ABOUT = 9
# The speed of one pair of frames is limited to BURST times the mean: flow of very fast motion is a guess.
BURST = 1.5


def motion(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Score uint8 `t h w c` at `fps`, best 2; speeds in heights of the frame a second; all 0 for one frame.

    motion: mean speed; moving: share of the pixels that move; jitter, pan, tilt, zoom: see `camera`. A clip and a
    re-encoded copy of it differ by less than 15 %. Near zero they differ by less than 0.005 in pan and tilt, 0.01 in
    zoom (which moves the edge of the frame by as much), 0.01 in jitter and moving, and 0.0005 in motion; all limits are
    larger.
    """
    greys = [prefiltered(frame) for frame in frames]
    details = [detail(grey) for grey in greys]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flows = [dis.calc(a, b, None) for a, b in pairwise(greys)]
    if not flows:
        return {"motion": 0.0, "moving": 0.0, "jitter": 0.0, "pan": 0.0, "tilt": 0.0, "zoom": 0.0}
    errors = [lost(a, b, flow) for (a, b), flow in zip(pairwise(greys), flows, strict=True)]
    flows = [flow * (fps / flow.shape[0]) for flow in flows]
    most = [np.maximum(a, b) for a, b in pairwise(details)]
    trust = [detail / (detail + PLAIN) for detail in most]
    speeds = [cv2.magnitude(flow[..., 0], flow[..., 1]) * share for flow, share in zip(flows, trust, strict=True)]
    means = np.array([speed.mean() for speed in speeds])
    least = [np.minimum(a, b) for a, b in pairwise(details)]
    thin = [[part[::4, ::4] for part in parts] for parts in zip(flows, most, least, strict=True)]
    views = [View(*parts, error) for parts, error in zip(thin, errors, strict=True)]
    return {
        "motion": float(np.minimum(means, BURST * means.mean()).mean()),
        "moving": float(np.mean([speed > STILL for speed in speeds])),
        **camera(views),
    }


def lost(before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the mean square error of the flow around every fourth pixel, float32 `h w`; flow is in pixels."""
    before, flow = before[::2, ::2], flow[::2, ::2]
    height, width = before.shape
    places = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), -1)
    led = cv2.remap(after, 2 * places + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    wrong = cv2.absdiff(led, before).astype(np.float32)
    return cv2.blur(wrong * wrong, (ABOUT // 2 + 1, ABOUT // 2 + 1))[::2, ::2]


def prefiltered(frame: np.ndarray) -> np.ndarray:
    """Return a frame in the form for flow: grey, small and slightly blurred."""
    return cv2.GaussianBlur(resized(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)), (0, 0), BLUR)


def detail(grey: np.ndarray) -> np.ndarray:
    """Return the mean square of the gradient around each pixel, float32 `h w`."""
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1)))
    return cv2.blur(across * across + down * down, (ABOUT, ABOUT))


def resized(frame: np.ndarray) -> np.ndarray:
    """Scale a frame down to `HEIGHT` if it is higher, and up to `THINNEST` if a side is shorter."""
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
