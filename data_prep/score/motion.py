"""Motion: dense optical flow by DIS (Kroeger et al. 2016, arXiv 1603.03590) between frames half a second apart."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from data_prep.score.camera import PLAIN, View, camera
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

    motion: mean speed; moving: share of the pixels that move at all; jitter, pan, tilt, zoom: see `camera`. A clip and
    a copy of it that was encoded again differ by less than 15 %, and near zero by less than half of what the camera's
    words take for still: 0.005 in pan and tilt, 0.01 in zoom, which moves the edge of the frame by as much. In jitter
    and moving 0.01 is nothing to any limit, in motion 0.0005, a third of the limit.
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
    """Return the mean square about every fourth pixel of what flow, in pixels, does not find again, float32 `h w`."""
    before, flow = before[::2, ::2], flow[::2, ::2]
    height, width = before.shape
    places = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), -1)
    led = cv2.remap(after, 2 * places + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    wrong = cv2.absdiff(led, before).astype(np.float32)
    return cv2.blur(wrong * wrong, (ABOUT // 2 + 1, ABOUT // 2 + 1))[::2, ::2]


def prefiltered(frame: np.ndarray) -> np.ndarray:
    """Return a frame as flow is computed on: grey, small and a little blurred."""
    return cv2.GaussianBlur(resized(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)), (0, 0), BLUR)


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
