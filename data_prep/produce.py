"""Produce: fetch one video and make all its clips; runs in a worker, on this machine or another.

A worker reports the outcome of a request only after all its clips are complete in the work folder. The process that
leads the run then writes the outcome to the ledger.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from socket import gethostname
from typing import NamedTuple

import av
import cv2

from data_prep.books.ledger import Outcome
from data_prep.books.made import Made, MadeClip, Sound
from data_prep.books.request import ClipRequest
from data_prep.books.work_folder import VIDEOS, NotWritten, clip_file, publish
from data_prep.cut.audio import cut_audio
from data_prep.cut.clips import ReadyClip, make_clips
from data_prep.cut.policy import CutPolicy, MakePolicy
from data_prep.cut.scenes import find_scenes, fit_durations
from data_prep.cut.spans import (
    MICROSECOND,
    Span,
    Timeline,
    microseconds,
    packets,
    read_timeline,
    refuse,
    shortfall,
)
from data_prep.engine.local import Node
from data_prep.engine.lock import join_run
from data_prep.engine.stopwatch import Spent, clock
from data_prep.fetch.acquire import Acquired, Acquirer
from data_prep.fetch.failures import classify
from data_prep.fetch.policy import FetchPolicy
from data_prep.score.duplicate import exact_hash
from videodiff.data.video.boxes import top_boxes
from videodiff.data.video.info import DecodeError, best_stream, open_video

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Making:
    """What a worker needs to make clips: the work folder, the place of the videos, and the policies."""

    work: Path
    root: str
    policy: MakePolicy = field(default_factory=MakePolicy)
    fetch: FetchPolicy = field(default_factory=FetchPolicy)


class Stop(NamedTuple):
    """The answer of a worker that cannot write, so that no video can be made: the error, its path and its host."""

    errno: int
    path: str
    host: str


Ended = tuple[Outcome, dict[str, Spent]]


def produce(requests: Sequence[ClipRequest], node: Node, making: Making) -> Iterator[Ended | Stop]:
    """Make the clips of the requests of one video; yield the outcome of each request, and the time spent so far."""
    join_run(node.scratch)
    cv2.setNumThreads(1)
    try:
        with clock("decode"):
            for outcome in ends(requests, node, making):
                yield outcome, clock.take()
    except OSError as error:
        if error.errno not in FULL and not isinstance(error, NotWritten):
            raise
        yield Stop(error.errno, error.filename or str(node.scratch), gethostname())


def ends(requests: Sequence[ClipRequest], node: Node, making: Making) -> Iterator[Outcome]:
    """Yield how each request ends; of several outcomes of one the first counts, see `Ledger.record`."""
    try:
        with clock("fetch"):
            sound = making.policy.audio == "keep"
            acquirer = Acquirer(node.scratch / VIDEOS, making.root, making.fetch, node.keeper, sound)
            video = acquirer.fetch(requests[0])
    except Exception as error:
        failure = classify(error)
        for request in requests:
            yield Outcome(request.id, "failed", failure.reason, failure.retryable, failure.detail)
        return
    clock.count("fetch", 1, video.path.stat().st_size)
    try:
        for outcome in cut_all(requests, video, making):
            # A failure may be tried again, and then has another file.
            yield outcome if outcome.status == "failed" else replace(outcome, stamp=video.stamp)
    except (DecodeError, av.FFmpegError) as error:
        for request in requests:
            yield Outcome(request.id, "failed", "undecodable", detail=str(error))
    finally:
        if video.temporary:
            video.path.unlink()


def cut_all(requests: Sequence[ClipRequest], video: Acquired, making: Making) -> Iterator[Outcome]:
    """Cut, score and encode the clips of all requests in one decode; yield the outcome of each request."""
    timeline, policy = read_timeline(video.path), making.policy
    spans, owners, lost, made = [], [], {}, {}
    scenes = None
    if policy.cut.by == "scenes":
        with clock("scenes"):
            scenes = find_scenes(video.path, *scene_settings(policy.cut), timeline)
    # The file is checked once, however many of its clips reach its end.
    missing = cache(lambda: missing_end(video.path))
    for number, request in enumerate(requests):
        wanted = spans_of(request, missing, timeline, scenes, policy.cut)
        if isinstance(wanted, Outcome):
            yield wanted
        else:
            spans += wanted
            owners += [number] * len(wanted)
            lost[number], made[number] = [], []
    waiting = {number: owners.count(number) for number in made}
    how = policy.encode, policy.crop, policy.score, policy.scores
    for place, clip in make_clips(video.path, spans, *how) if spans else ():
        number = owners[place]
        if isinstance(clip, ReadyClip):
            id = clip_id(requests[number], spans[place], making)
            with clock("write"):
                kept = keep_clip(making.work, id, spans[place], clip)
            clock.count("encode", 1, len(clip.video))
            if policy.audio == "keep":
                with clock("sound"):
                    kept = replace(kept, audio=keep_audio(making.work, id, spans[place], video.path, timeline.joined))
            made[number].append(kept)
        else:
            lost[number].append(str(clip))
        waiting[number] -= 1
        if not waiting[number]:
            clips = sorted(made.pop(number), key=lambda clip: clip.span)
            with clock("write"):
                outcome = finish(requests[number], clips, lost.pop(number), video.sha256, making)
            yield outcome


def scene_settings(cut: CutPolicy) -> tuple[str, float | None, float]:
    return cut.detector, cut.threshold, cut.min_scene


def spans_of(
    request: ClipRequest, missing: Callable[[], str], timeline: Timeline, scenes: list[Span] | None, cut: CutPolicy
) -> list[Span] | Outcome:
    """Return the spans to cut for a request, or its outcome if there are none; missing: see `missing_end`."""
    # Before the first frame, as where the sound begins earlier, a video shows nothing.
    whole = Span(max(int(timeline.times[0]), 0) / MICROSECOND, timeline.end / MICROSECOND)
    span = whole if request.span is None else Span(*map(float, request.span))
    reason = refuse(span, timeline)
    if span.end * MICROSECOND >= timeline.end and (found := missing()):
        return Outcome(request.id, "failed", "truncated", detail=found)
    if reason:
        return Outcome(request.id, "failed", "bad-span", detail=reason)
    if scenes is None:
        return [span]
    inside = [Span(max(start, span.start), min(end, span.end)) for start, end in scenes]
    found = fit_durations((part for part in inside if part.start < part.end), cut.minimum, cut.maximum)
    found = [part for part in found if not refuse(part, timeline)]
    return found or Outcome(request.id, "filtered", "no scene", detail=f"found none of {cut.minimum:g} s or more")


def missing_end(video: Path) -> str:
    """Say how much earlier a file ends than its header says; empty if it is complete.

    A span says how long a clip must be; if the clip reaches the end of the file, only the header can say it. The header
    of a segment may give the length of the whole film: for a segment, the last box must be complete instead.
    """
    with video.open("rb") as file:
        boxes = dict(top_boxes(file))
    if "moof" in boxes:
        end, size = max(boxes.values()), video.stat().st_size
        return f"found {size:,} bytes, expected {end:,} as its last part says" if end > size else ""
    with open_video(video) as container:
        stream = best_stream(container)
        return shortfall(stream, packets(container, stream))


def clip_id(request: ClipRequest, span: Span, making: Making) -> str:
    """Return the UUID-5 of source and span: the id of the request, or with scenes a new id for each scene."""
    if making.policy.cut.by == "spans":
        return request.id
    start, end = (Fraction(microseconds(time), MICROSECOND) for time in span)
    return replace(request, span=(start, end)).id


def keep_clip(folder: Path, id: str, span: Span, clip: ReadyClip) -> MadeClip:
    """Write the mp4 of a clip and return its record."""
    publish(clip_file(folder, id, "mp4"), clip.video)
    return MadeClip(
        id,
        tuple(span),
        clip.info,
        clip.times,
        tuple(clip.box),
        clip.codec,
        clip.scores,
        exact_hash(clip.video),
        clip.deinterlaced,
        clip.notes,
        clip.perceptual or b"",
        len(clip.video),
    )


def keep_audio(folder: Path, id: str, span: Span, video: Path, joined: bool) -> Sound:
    """Write the sound of a clip and return its record, or the reason why it has none; joined: see `Timeline`."""
    if joined:
        return Sound(lost="found several recordings joined into one file, expected one to find the sound by its time")
    try:
        sound = cut_audio(video, span)
    # A fault of the sound never rejects the clip.
    except Exception as error:
        return Sound(lost=f"{type(error).__name__}: {error}")
    if sound is None:
        return Sound(lost="found no sound in the video")
    publish(clip_file(folder, id, "m4a"), sound)
    return Sound(exact_hash(sound), len(sound))


def finish(request: ClipRequest, clips: list[MadeClip], lost: list[str], sha256: str, making: Making) -> Outcome:
    """Write the record of a request whose clips are all on disk; return how it ended."""
    if not clips:
        return Outcome(request.id, "failed", "undecodable", detail=lost[0])
    Made(tuple(clips), tuple(lost), sha256, making.policy.parameters).write(making.work, request.id)
    return Outcome(request.id, "ok")
