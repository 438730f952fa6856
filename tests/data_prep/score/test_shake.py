"""The score `jitter` of footage that is shaken by a known amount, made and real, in several encodings."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.cut.clips import due_frames, make_clips
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.spans import Span
from tests.material.made_clips import write_video
from tests.material.scored_clips import still

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
# Frames a second of the files made here; a frame's height and the margin of which a shake uncovers a part.
FPS, HEIGHT, MARGIN, COUNT = 25, 256, 10, 75
MADE = "a wall"
# Files of a camera that stands still, and the second from which they are taken. People and bottles move before it.
FIXED = {
    MADE: 0,
    "intel_asl_book.mkv": 0,
    "intel_bottle-detection.mp4": 5,
    "intel_one-by-one-person-detection.mp4": 20,
}
CODINGS = {
    "h264": {"codec": "libx264", "crf": "12"},
    "h264, coarse": {"codec": "libx264", "crf": "28", "g": "12"},
    "hevc, coarse": {"codec": "libx265", "crf": "33", "x265-params": "log-level=none"},
}


def filmed(name: str) -> np.ndarray:
    """Return 75 frames `t h w c` of a fixed camera, with a margin around each."""
    whole = HEIGHT + 2 * MARGIN
    if name == MADE:
        return still(COUNT, height=whole, width=2 * whole)
    frames = []
    with av.open(str(CLIPS / name)) as container:
        for frame in container.decode(video=0):
            if frame.time >= FIXED[name]:
                width = round(whole * Fraction(frame.width, frame.height) / 2) * 2
                frames.append(frame.reformat(width, whole, "rgb24", interpolation="AREA").to_ndarray())
            if len(frames) == COUNT:
                return np.stack(frames)
    raise AssertionError(f"{name} has {len(frames)} frames from second {FIXED[name]} on")


@pytest.mark.parametrize("most", [0, 10])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name != MADE and not CLIPS.is_dir(), reason="the example clips are not part of the repository"
            ),
        )
        for name in FIXED
    ],
)
def test_jitter_is_the_known_shake_whatever_the_encoding(name, most):
    video, rng = filmed(name), np.random.default_rng(most)
    width = video.shape[2] - 2 * MARGIN
    places = MARGIN + rng.integers(-most, most + 1, (COUNT, 2))
    shaken = np.stack([frame[y : y + HEIGHT, x : x + width] for frame, (y, x) in zip(video, places, strict=True)])
    for coding, options in CODINGS.items():
        coded = write_video(shaken, container="matroska", **options)
        ((_, clip),) = make_clips(coded, [Span(0, COUNT / FPS)], EncodePolicy(), crop=False, scores=("motion",))
        fps = clip.sampled.fps
        seen = places[due_frames(COUNT, FPS, fps)] / HEIGHT
        # Its velocity between the frames that are looked at, and how much this changes from pair to pair.
        known = np.linalg.norm(np.diff(np.diff(seen, axis=0) * fps, axis=0), axis=1).mean()
        assert clip.scores["jitter"] == pytest.approx(known, abs=0.15 * known + 0.015), coding
