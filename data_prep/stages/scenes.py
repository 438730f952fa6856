"""Scenes: where shots begin and end, by PySceneDetect's detectors, without the cross-fades and fades between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from data_prep.stages.cut import MICROSECOND, Span, Timeline, decode_from, read_timeline
from videodiff.data.video import DecodeError

# Detectors see frames of this width: PySceneDetect's own choice.
WIDTH = 256
# Dissolves are looked for on this grid of mean colours, over these distances, in seconds, to both sides of a frame.
GRID, REACHES = (8, 5), (0.2, 0.3, 0.45, 0.7)
# In a dissolve the grid changes by this many levels from side to side, the frame differs from their mean by less than
# this share of that, and its contrast (as variance) is below theirs by this factor.
CHANGE, BEND, DIP = 10.0, 0.5, 0.8
# A dissolve reaches as far as its change goes on at this share of its mean speed.
SLOWEST = 0.3


def find_scenes(
    source: str | Path,
    detector: str = "adaptive",
    threshold: float | None = None,
    min_scene: float = 0.6,
    timeline: Timeline | None = None,
) -> list[Span]:
    """Return the spans of the shots of a source, decoded once; frames inside cross-fades and fades are in none.

    detector: adaptive (threshold 3.5: frame change over its neighbours' mean) or content (threshold 31: levels of
    change); min_scene: seconds after a cut in which there is no other. Memory: 130 bytes a frame.
    """
    timeline = read_timeline(source) if timeline is None else timeline
    detect, reformatter = make_detector(detector, threshold, min_scene), VideoReformatter()
    times, cuts, grids, contrasts = [], [], [], []
    for time, frame in decode_from(source, timeline, int(timeline.times[0]), []):
        image = thumbnail(frame, reformatter)
        code = FrameTimecode(Timecode(time, Fraction(1, MICROSECOND)), fps=timeline.fps)
        cuts += [round(cut.seconds * MICROSECOND) for cut in detect.process_frame(code, image)]
        times.append(time)
        grids.append(cv2.resize(image, GRID, interpolation=cv2.INTER_AREA))
        contrasts.append(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).var())
    if not times:
        raise DecodeError("found no frame that decodes, expected at least one")
    found = dissolves(np.array(grids), np.array(contrasts), float(timeline.fps))
    return between(cuts, [(times[first], times[last]) for first, last in found], times[0], timeline.end)


def make_detector(detector: str, threshold: float | None, min_scene: float) -> SceneDetector:
    """Return one of PySceneDetect's detectors."""
    # A whole number would be taken for frames.
    min_scene = float(min_scene)
    if detector == "adaptive":
        return AdaptiveDetector(3.5 if threshold is None else threshold, min_scene_len=min_scene, window_width=3)
    if detector == "content":
        return ContentDetector(31.0 if threshold is None else threshold, min_scene_len=min_scene)
    raise ValueError(f"cut.detector: found {detector!r}, expected adaptive or content")


def thumbnail(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame, small: uint8 `h w c`, BGR as detectors expect."""
    width, height = min(WIDTH, frame.width), max(1, round(frame.height * min(1, WIDTH / frame.width)))
    return reformatter.reformat(frame, width, height, "bgr24", interpolation=Interpolation.AREA, threads=1).to_ndarray()


def dissolves(grids: np.ndarray, contrasts: np.ndarray, fps: float) -> list[tuple[int, int]]:
    """Return the last frame before and the first frame after each cross-fade and fade, by number.

    grids: uint8 `t h w c`, coarse enough that a dissolve, not motion, is what changes them steadily; contrasts: the
    variance of each frame. Between unlike pictures a mixture is the mean of earlier and later ones, and has less
    contrast than they do, as what is bright in one meets what is dark in the other (Alattar 1993); a pan or a change
    of light is not both.
    """
    paths, found = grids.reshape(len(grids), -1).astype(np.float32), []
    for reach in (max(2, round(seconds * fps)) for seconds in REACHES):
        before, middle, after = paths[: -2 * reach], paths[reach:-reach], paths[2 * reach :]
        change = np.abs(after - before).mean(axis=1)
        bend = np.abs(2 * middle - before - after).mean(axis=1)
        dip = contrasts[reach:-reach] < DIP / 2 * (contrasts[: -2 * reach] + contrasts[2 * reach :])
        hits = np.flatnonzero((change > CHANGE) & (bend < BEND * change) & dip).tolist()
        for first, last in joined((hit, hit + 2 * reach) for hit in hits):
            # What a shorter reach found it found more exactly.
            if not any(first <= end and last >= start for start, end in found):
                found.append(whole_ramp(paths, first, last))
    return joined(found)


def whole_ramp(paths: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """Widen a part of a dissolve to where the picture stops moving from the one before to the one after."""
    way = paths[last] - paths[first]
    steps = np.diff(paths @ (way / np.linalg.norm(way)))
    slowest = SLOWEST * np.linalg.norm(way) / (last - first)
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
