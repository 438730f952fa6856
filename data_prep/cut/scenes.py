"""Scenes: where shots begin and end, by PySceneDetect's detectors, without the cross-fades and fades between them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from data_prep.cut.spans import MICROSECOND, Span, Timeline, decode_from, read_timeline
from videodiff.data.video.info import DecodeError

# Detectors see frames of this width: PySceneDetect's own choice.
WIDTH = 256
# What tells a transition from all else is measured on grey images of this height and width, in levels.
HEIGHT_SMALL, WIDTH_SMALL = 54, 96
# A transition replaces the picture. TILE: size of the tiles that are compared. AROUND: pixels around its place in which
# a tile is searched for in the other picture. TEXTURE: deviation from which a tile has detail. A tile is kept if it
# correlates by more than SAME and has at least the share FADED of its contrast: less contrast is a fade, not a change
# of exposure. KEPT: the largest share of the picture that a cut or a dissolve keeps. Unrelated pictures keep nothing;
# neighbouring frames of a shot keep more than half.
TILE, AROUND, TEXTURE, SAME, FADED, KEPT = (18, 24), (5, 8), 3.0, 0.7, 0.4, 0.2
# A border is a black bar if its levels are at most this.
BLACK = 24
# Seconds within which the picture comes back after a flash.
FLASH = 0.3
# A dissolve is searched for between the frames REACHES seconds before and after a frame, on means of blocks of BLOCK
# pixels. CHANGE: levels by which the blocks change between the two sides. BEND: the frame differs from the mean of the
# two sides by less than this share of that change.
REACHES, BLOCK, CHANGE, BEND = (0.12, 0.2, 0.3, 0.45, 0.7, 1.1), 6, 8.0, 0.6
# A dissolve ends where its change becomes slower than this share of its mean speed.
SLOWEST = 0.3
# In a dissolve at least the share CHANGING of the blocks changes. Every frame is a mixture of the first and the last
# frame, up to RESIDUAL, a share of the change. The weight grows by at most STEP a frame. Halfway, at least the share
# DIPPING of the blocks with contrast has a contrast (as variance) below DIP times the mean of both ends.
CHANGING, RESIDUAL, STEP, DIP, DIPPING = 0.5, 0.25, 0.5, 0.8, 0.6
# Frames are examined STRETCH seconds at a time. The last OVERLAP seconds are examined again: a dissolve is shorter.
STRETCH, OVERLAP = 30.0, 8.0


def find_scenes(
    source: str | Path,
    detector: str = "adaptive",
    threshold: float | None = None,
    min_scene: float = 0.6,
    timeline: Timeline | None = None,
) -> list[Span]:
    """Return the spans of the shots of a source, decoded once; frames inside cross-fades and fades are in none.

    detector: what proposes cuts, adaptive (threshold 2: frame change over its neighbours' mean) or content (threshold
    31: levels of change); only those are taken at which the picture is replaced (`kept`). min_scene: seconds after a
    cut in which there is no other. Memory: 5 kB a frame for the last half minute.
    """
    timeline = read_timeline(source) if timeline is None else timeline
    detect, reformatter = make_detector(detector, threshold), VideoReformatter()
    transitions, first = Transitions(float(timeline.fps), min_scene), None
    for time, frame in decode_from(source, timeline, int(timeline.times[0]), []):
        first = time if first is None else first
        image = thumbnail(frame, reformatter)
        code = FrameTimecode(Timecode(time, Fraction(1, MICROSECOND)), fps=timeline.fps)
        proposed = [round(cut.seconds * MICROSECOND) for cut in detect.process_frame(code, image)]
        transitions.add(time, small(image), proposed)
    if first is None:
        raise DecodeError("found no frame that decodes, expected at least one")
    transitions.settle(last=True)
    gaps = joined(transitions.dissolves)
    spans = between(apart(transitions.cuts, first, min_scene), gaps, first, timeline.end)
    # A span beside a dissolve that is too short for a shot is a part of the dissolve that a cut has split off.
    edges = {time / MICROSECOND for gap in gaps for time in gap}
    return [span for span in spans if span.end - span.start >= min_scene or edges.isdisjoint(span)]


def make_detector(detector: str, threshold: float | None) -> SceneDetector:
    """Return one of PySceneDetect's detectors, which proposes too many cuts rather than too few."""
    if detector == "adaptive":
        ratio = 2.0 if threshold is None else threshold
        return AdaptiveDetector(ratio, min_scene_len=0.0, window_width=3, min_content_val=8.0)
    if detector == "content":
        return ContentDetector(31.0 if threshold is None else threshold, min_scene_len=0.0)
    raise ValueError(f"cut.detector: found {detector!r}, expected adaptive or content")


def thumbnail(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame, small: uint8 `h w c`, BGR as detectors expect."""
    width, height = min(WIDTH, frame.width), max(1, round(frame.height * min(1, WIDTH / frame.width)))
    return reformatter.reformat(frame, width, height, "bgr24", interpolation=Interpolation.AREA, threads=1).to_ndarray()


def small(image: np.ndarray) -> np.ndarray:
    """Return a thumbnail as transitions are measured on: uint8 `h w`, grey."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return cv2.resize(grey, (WIDTH_SMALL, HEIGHT_SMALL), interpolation=cv2.INTER_AREA)


class Transitions:
    """The cuts (times) and dissolves (pairs of times) of a source whose frames come one by one."""

    def __init__(self, fps: float, min_scene: float) -> None:
        self.fps = fps
        # If the picture comes back sooner than the shortest shot ends, it was a flash, not a shot.
        self.back = max(1, round(min(FLASH, min_scene) * fps))
        self.longest, self.overlap = max(round(STRETCH * fps), 64), max(round(OVERLAP * fps), 32)
        self.times, self.images, self.proposed, self.begun = [], [], [], False
        self.cuts, self.dissolves = [], []

    def add(self, time: int, image: np.ndarray, proposed: Iterable[int]) -> None:
        """Add the next frame; proposed: times of the cuts that a detector has found since the last frame."""
        self.times.append(time)
        self.images.append(image)
        self.proposed += proposed
        if len(self.images) == self.longest:
            self.settle()

    def settle(self, last: bool = False) -> None:
        """Decide on the cuts and dissolves in the frames held; keep only the overlap with the next frames."""
        images = np.stack(self.images)
        decided = len(images) if last else len(images) - self.overlap // 2
        for time in [time for time in self.proposed if last or time < self.times[decided]]:
            self.proposed.remove(time)
            if is_cut(images, bisect.bisect_left(self.times, time), self.back):
                self.cuts.append(time)
        for first, end in dissolves(images, self.fps):
            # A dissolve that the edge of the held frames cuts off is whole in the held frames before or after.
            if (first > 0 or not self.begun) and (end < len(images) - 1 or last):
                self.dissolves.append((self.times[first], self.times[end]))
        self.begun = True
        self.times, self.images = self.times[-self.overlap :], self.images[-self.overlap :]


def apart(cuts: Iterable[int], start: int, min_scene: float) -> list[int]:
    """Return the cuts that come no sooner than `min_scene` seconds after the one before."""
    found = [start]
    for cut in sorted(cuts):
        if cut - found[-1] >= round(min_scene * MICROSECOND):
            found.append(cut)
    return found[1:]


def is_cut(images: np.ndarray, number: int, back: int) -> bool:
    """Tell whether the image at index `number` replaces the picture for good: not back within `back` images."""
    later = [(number - 1, number + more) for more in range(back)]
    earlier = [(number - 1 - more, number) for more in range(1, back)]
    pairs = [(a, b) for a, b in (*later, *earlier) if a >= 0 and b < len(images)]
    return bool(pairs) and all(kept(images[a], images[b]) <= KEPT for a, b in pairs)


def kept(before: np.ndarray, after: np.ndarray) -> float:
    """Return the share of the detail of two pictures that is in both; uint8 `h w`.

    Blind to exposure and to short ways, as correlation of detail is: a fixed camera before which something comes and
    goes keeps what it does not cover, a moving one what has not left the picture.
    """
    inside = within_bars(np.maximum(before, after))
    pictures = [detail(before[inside]), detail(after[inside])]
    found = tiles_found(*pictures) + tiles_found(*pictures[::-1])
    if not found:
        # Plain pictures are the same where they are as bright.
        return float(abs(float(before.mean()) - float(after.mean())) < CHANGE)
    return sum(found) / len(found)


def within_bars(image: np.ndarray) -> tuple[slice, slice]:
    """Return where the picture is inside of black bars, whose edges stay whatever the picture becomes."""
    lit = image > BLACK
    sides = [np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0)]
    # The outermost row may be mixed with the bar.
    return tuple(slice(int(side[0]) + 1, int(side[-1])) if len(side) > 2 else slice(None) for side in sides)


def detail(image: np.ndarray) -> np.ndarray:
    """Return a picture without its broad light and shade, in which unrelated pictures may be alike."""
    image = image.astype(np.float32)
    return image - cv2.GaussianBlur(image, (0, 0), 4)


def tiles_found(picture: np.ndarray, other: np.ndarray) -> list[bool]:
    """Return for each tile with detail whether it is in the other picture near its place."""
    found = []
    for top, left in product(range(0, picture.shape[0], TILE[0]), range(0, picture.shape[1], TILE[1])):
        tile = picture[top : top + TILE[0], left : left + TILE[1]]
        if tile.std() < TEXTURE:
            continue
        near = other[
            max(top - AROUND[0], 0) : top + TILE[0] + AROUND[0], max(left - AROUND[1], 0) : left + TILE[1] + AROUND[1]
        ]
        likeness = cv2.matchTemplate(near, tile, cv2.TM_CCOEFF_NORMED)
        _, most, _, (x, y) = cv2.minMaxLoc(likeness)
        spreads = sorted([tile.std(), near[y : y + tile.shape[0], x : x + tile.shape[1]].std()])
        found.append(most > SAME and spreads[0] >= FADED * spreads[1])
    return found


def dissolves(images: np.ndarray, fps: float) -> list[tuple[int, int]]:
    """Return the last frame before and the first frame after each cross-fade and fade, by number; uint8 `t h w`.

    A dissolve mixes two unlike pictures everywhere with one weight that grows. Candidates are where the blocks of the
    picture change steadily; `mixing` tells them from things that come and go, light that changes and cameras that move.
    """
    blocks = images.reshape(len(images), HEIGHT_SMALL // BLOCK, BLOCK, WIDTH_SMALL // BLOCK, BLOCK).astype(np.float32)
    means = blocks.mean(axis=(2, 4)).reshape(len(images), -1)
    spreads = blocks.var(axis=(2, 4)).reshape(len(images), -1)
    found: list[tuple[float, int, int]] = []
    for first, last in sorted(set(candidates(means, fps))):
        residual = mixing(means[first : last + 1], spreads[first : last + 1])
        if residual < RESIDUAL and kept(images[first], images[last]) <= KEPT:
            found.append((residual, first, last))
    chosen: list[tuple[int, int]] = []
    # If candidates overlap, the one that is closest to a mixture is the most exact.
    for _, first, last in sorted(found):
        if not any(first <= end and last >= start for start, end in chosen):
            chosen.append((first, last))
    return sorted(chosen)


def candidates(means: np.ndarray, fps: float) -> Iterator[tuple[int, int]]:
    """Yield from where to where pictures `t n` go steadily from one to another."""
    for reach in sorted({max(2, round(seconds * fps)) for seconds in REACHES}):
        if len(means) <= 2 * reach:
            return
        before, middle, after = means[: -2 * reach], means[reach:-reach], means[2 * reach :]
        change = np.abs(after - before).mean(axis=1)
        bend = np.abs(2 * middle - before - after).mean(axis=1)
        change[bend >= BEND * change] = 0
        for first in np.flatnonzero((change > CHANGE) & (change == highest(change, reach))).tolist():
            yield whole_ramp(means, first, first + 2 * reach)


def highest(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the highest of the values up to `reach` places away from each."""
    return cv2.dilate(values[:, None], np.ones((2 * reach + 1, 1), np.uint8)).ravel()


def mixing(means: np.ndarray, spreads: np.ndarray) -> float:
    """Return how far frames are from mixtures of the first and the last, as a share of the change; inf for no dissolve.

    means, spreads: mean and variance of each block, `t n`. Between unlike pictures a mixture has less contrast than
    they do, as what is bright in one meets what is dark in the other (Alattar 1993).
    """
    way = means[-1] - means[0]
    weights = (means - means[0]) @ way / (way @ way)
    halfway = int(np.abs(weights - 0.5).argmin())
    ends = (spreads[0] + spreads[-1]) / 2
    detailed = ends > TEXTURE**2
    dips = (spreads[halfway] < DIP * ends)[detailed]
    if (np.abs(way) > CHANGE).mean() < CHANGING or np.diff(weights).max() > STEP:
        return math.inf
    if not detailed.any() or dips.mean() < DIPPING:
        return math.inf
    mixtures = means[0] + weights[:, None] * way
    return float(np.abs(means - mixtures).mean() / np.abs(way).mean())


def whole_ramp(means: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """Widen a part of a dissolve until the picture stops changing from the old shot to the new one."""
    before = None
    while (first, last) != before:
        before = first, last
        way = means[last] - means[first]
        steps = np.diff(means @ way)
        slowest = SLOWEST * (way @ way) / (last - first)
        while first > 0 and steps[first - 1] > slowest:
            first -= 1
        while last < len(steps) and steps[last] > slowest:
            last += 1
    return first, last


def joined(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of intervals, in order."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(end, union[-1][1])
        else:
            union.append((start, end))
    return union


def between(cuts: Iterable[int], dissolves: Sequence[tuple[int, int]], start: int, end: int) -> list[Span]:
    """Return what lies between cuts and dissolves; all times in microseconds. A cut inside a dissolve is none."""
    alone = [(cut, cut) for cut in cuts if not any(first <= cut <= last for first, last in dissolves)]
    edges = [(start, start), *sorted([*alone, *dissolves]), (end, end)]
    spans = [(before[1], after[0]) for before, after in pairwise(edges)]
    return [Span(first / MICROSECOND, last / MICROSECOND) for first, last in spans if last > first]


def fit_durations(spans: Iterable[Span], minimum: float = 0.0, maximum: float = math.inf) -> list[Span]:
    """Split spans longer than `maximum` seconds into equal parts and leave out what is shorter than `minimum`."""
    if not 0 <= minimum <= maximum or maximum == 0:
        raise ValueError(f"cut: found durations from {minimum:g} to {maximum:g} s, expected 0 <= minimum <= maximum")
    fitted = []
    for start, end in spans:
        parts = max(1, math.ceil(round((end - start) / maximum, 6)))
        edges = [start + (end - start) * part / parts for part in range(parts)] + [end]
        fitted += [Span(*edge) for edge in pairwise(edges)]
    return [span for span in fitted if round(span.end - span.start, 6) >= minimum]
