"""Scenes: where shots begin and end, by PySceneDetect's detectors, without the cross-fades and fades between them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import SceneDetector
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from data_prep.stages.cut import MICROSECOND, Span, Timeline, decode_from, read_timeline

# Frames are compared at this width: PySceneDetect's own choice.
WIDTH = 256
# Half the distance in seconds between the frames whose mean a frame is inside a dissolve, slow and fast.
REACHES = (0.2, 0.4)
# A dissolve changes this many levels over such a distance, and differs from the mean by less than this share of it.
CHANGE, BEND = 10.0, 0.45


def find_scenes(
    source: str | Path,
    detector: str = "adaptive",
    threshold: float | None = None,
    min_scene: float = 0.6,
    timeline: Timeline | None = None,
) -> list[Span]:
    """Return the spans of the shots of a source, decoded once; frames inside cross-fades and fades are in none.

    detector: adaptive (threshold 3.5: frame change over its neighbours' mean) or content (threshold 31: levels of
    change); min_scene: seconds after a cut in which there is no other.
    """
    timeline = read_timeline(source) if timeline is None else timeline
    cuts, dissolves = detect(thumbnails(source, timeline), make_detector(detector, threshold, min_scene), timeline.fps)
    return between(cuts, dissolves, int(timeline.times[0]), timeline.end)


def make_detector(detector: str, threshold: float | None, min_scene: float) -> SceneDetector:
    """Return one of PySceneDetect's detectors."""
    if detector == "adaptive":
        return AdaptiveDetector(3.5 if threshold is None else threshold, min_scene_len=min_scene, window_width=3)
    if detector == "content":
        return ContentDetector(31.0 if threshold is None else threshold, min_scene_len=min_scene)
    raise ValueError(f"cut.detector: found {detector!r}, expected adaptive or content")


def thumbnails(source: str | Path, timeline: Timeline) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the time of every frame in microseconds and the frame, small: uint8 `h w c`, BGR as detectors expect."""
    reformatter = VideoReformatter()
    for time, frame in decode_from(source, timeline, int(timeline.times[0]), []):
        width, height = min(WIDTH, frame.width), max(1, round(frame.height * min(1, WIDTH / frame.width)))
        small = reformatter.reformat(frame, width, height, "bgr24", interpolation=Interpolation.AREA, threads=1)
        yield time, small.to_ndarray()


def detect(
    frames: Iterable[tuple[int, np.ndarray]], detector: SceneDetector, fps: float
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the times of the first frames after cuts, and from when to when a picture dissolves into the next."""
    cuts, dissolves, code = [], [], None
    reaches = sorted({max(2, round(seconds * fps)) for seconds in REACHES})
    window: deque[tuple[int, np.ndarray]] = deque(maxlen=2 * reaches[-1] + 1)
    for time, image in frames:
        code = FrameTimecode(Timecode(time, Fraction(1, MICROSECOND)), fps=float(fps))
        cuts += detector.process_frame(code, image)
        window.append((time, image.mean(axis=-1, dtype=np.float32)))
        dissolves += [(window[-2 * reach - 1][0], time) for reach in reaches if dissolving(window, reach)]
    if code is not None:
        cuts += detector.post_process(code)
    return sorted({round(cut.seconds * MICROSECOND) for cut in cuts}), joined(dissolves)


def dissolving(window: Sequence[tuple[int, np.ndarray]], reach: int) -> bool:
    """Tell whether the frame `reach` before the newest is the mean of the two that lie `reach` from it.

    It is in a cross-fade or a fade, and it is not where things move or at a cut.
    """
    if len(window) <= 2 * reach:
        return False
    before, middle, after = (window[-1 - offset][1] for offset in (2 * reach, reach, 0))
    change = np.abs(after - before).mean()
    return bool(change > CHANGE and np.abs(2 * middle - before - after).mean() < BEND * change)


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
