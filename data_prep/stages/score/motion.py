"""Motion: dense optical flow by DIS (Kroeger et al. 2016, arXiv 1603.03590) between frames half a second apart."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from data_prep.stages.score.camera import camera

HEIGHT = 144
# Thinner than this DIS crashes the process.
THINNEST = 32
# Heights of the frame a second above which a pixel moves; compression noise in still footage stays below.
STILL = 0.01


def motion(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Score uint8 `t h w c` at `fps`, best 2; speeds in heights of the frame a second; all 0 for one frame.

    motion: mean speed; moving: share of the pixels that move at all; jitter: mean change of the median velocity, the
    camera's, from one pair of frames to the next; pan, tilt, zoom: see `camera`.
    """
    greys = [cv2.cvtColor(resized(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flows = [dis.calc(a, b, None) * (fps / a.shape[0]) for a, b in pairwise(greys)]
    if not flows:
        return {"motion": 0.0, "moving": 0.0, "jitter": 0.0, "pan": 0.0, "tilt": 0.0, "zoom": 0.0}
    speeds = [cv2.magnitude(flow[..., 0], flow[..., 1]) for flow in flows]
    # Every fourth pixel both ways has the same median.
    turns = np.array([np.median(flow[::4, ::4], axis=(0, 1)) for flow in flows])
    changes = np.linalg.norm(np.diff(turns, axis=0), axis=1)
    return {
        "motion": float(np.mean(speeds)),
        "moving": float(np.mean([speed > STILL for speed in speeds])),
        "jitter": float(changes.mean()) if len(changes) else 0.0,
        **camera(flows, turns),
    }


def resized(frame: np.ndarray) -> np.ndarray:
    """Scale a frame to `HEIGHT` pixels, where it is higher, and to `THINNEST` where a side is less."""
    height, width = frame.shape[:2]
    scale = min(HEIGHT / height, 1.0)
    scale = max(scale, THINNEST / (min(height, width)))
    size = max(round(width * scale), THINNEST), max(round(height * scale), THINNEST)
    return frame if size == (width, height) else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
