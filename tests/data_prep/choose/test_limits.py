"""The limits of conf/prep/default.yaml: of each there is a clip that it rejects, and one clip that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from data_prep.choose.filter import filtered
from data_prep.cut.clips import make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.spans import Span
from tests.material.scored_clips import panning, still
from videodiff.data.video.encode import encode

FILTER = yaml.safe_load((Path(__file__).parents[3] / "conf/prep/default.yaml").read_text())["filter"]
# Those of models are none until a model is given.
SET = {name: {side: limit for side, limit in sides.items() if limit is not None} for name, sides in FILTER.items()}
LIMITS = {name: sides for name, sides in SET.items() if sides}
FPS, SIZE = 8.0, {"height": 192, "width": 342}
good = partial(panning, 24, speed=4, **SIZE)


def lit(gain: float, lift: float) -> np.ndarray:
    return (good().astype(np.float32) * gain + lift).clip(0, 255).astype(np.uint8)


def slide() -> np.ndarray:
    video = good()
    for frame in video:
        for line in range(4):
            place = (10, 45 + 40 * line)
            cv2.putText(frame, "SALE ENDS TODAY", place, cv2.FONT_HERSHEY_SIMPLEX, 1.1, (255, 255, 255), 2, cv2.LINE_AA)
    return video


def logo() -> np.ndarray:
    video = good(speed=8)
    for frame in video:
        for radius in (24, 40, 56):
            cv2.circle(frame, (250, 100), radius, (240, 240, 240), 6, cv2.LINE_AA)
    return video


def white_sky() -> np.ndarray:
    video = good()
    video[:, : video.shape[1] * 3 // 4] = 255
    return video


def combed() -> np.ndarray:
    video = good()
    video[:-1, 1::2] = video[1:, 1::2].copy()
    return video


# For each limit footage that it rejects before another one does, and its frames a second.
REJECTED: dict[str, tuple[Callable[[], np.ndarray], float]] = {
    "duration min": (lambda: good()[:6], FPS),
    "duration max": (lambda: panning(62, speed=2, height=64, width=96), 1.0),
    "short_side min": (lambda: panning(24, speed=1, height=48, width=84), FPS),
    "motion min": (lambda: still(24, **SIZE), FPS),
    "jitter max": (lambda: good(shake=20), FPS),
    "text max": (slide, FPS),
    "overlay max": (logo, FPS),
    "interlaced max": (combed, FPS),
    "sharpness min": (lambda: np.stack([cv2.GaussianBlur(frame, (0, 0), 12) for frame in good()]), FPS),
    "brightness min": (lambda: lit(0.06, 0), FPS),
    "brightness max": (lambda: lit(0.1, 240), FPS),
    "contrast min": (lambda: lit(0.06, 130), FPS),
    "clipped max": (white_sky, FPS),
}


def scores_of(frames: np.ndarray, fps: float, folder: Path) -> dict[str, float]:
    """Return the scores of a clip as `prep` makes it."""
    (folder / "source.mp4").write_bytes(encode(frames, fps))
    ((_, clip),) = make_clips(folder / "source.mp4", [Span(0, len(frames) / fps)], EncodePolicy())
    return clip.scores


def test_every_limit_has_a_clip_that_it_must_reject():
    assert set(REJECTED) == {f"{name} {side}" for name, limits in LIMITS.items() for side in limits}


@pytest.mark.parametrize("limit", REJECTED)
def test_a_default_limit_rejects_what_it_must(limit, tmp_path):
    frames, fps = REJECTED[limit]
    scores, (name, side) = scores_of(frames(), fps, tmp_path), limit.split()
    word = "below" if side == "min" else "above"
    found = filtered(scores, LIMITS)
    assert found is not None, scores
    assert found.reason == f"{name} {word} {LIMITS[name][side]:g}", scores


def test_the_default_limits_keep_a_clip_that_is_good_in_every_way(tmp_path):
    scores = scores_of(good(), FPS, tmp_path)
    assert filtered(scores, LIMITS) is None, scores
