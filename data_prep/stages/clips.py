"""Clips: the frames of one decode become mp4s, scores and hashes, clip by clip, as the frames come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from data_prep.stages.cut import Shown, Span, Timeline, cut, read_timeline
from data_prep.stages.encode import EncodePolicy, Fitter, open_encoder, schedule
from data_prep.stages.score.duplicate import video_hash
from data_prep.stages.score.geometry import geometry
from data_prep.stages.score.letterbox import Bars, Box
from data_prep.stages.score.motion import motion
from data_prep.stages.score.overlay import overlay
from data_prep.stages.score.quality import quality
from data_prep.stages.score.text import text
from data_prep.stopwatch import clock
from videodiff.data.geometry import even_size, same_shape
from videodiff.data.screen import show_size, transfer_of
from videodiff.data.video import DecodeError, VideoInfo

# Frames a second that are scored, but at least so many a clip; their short side in pixels.
SCORED_FPS, FEWEST, SCORED_SIDE = 2.0, 4, 256
# Microseconds of a clip after which its bars are decided on; until then its frames are held back.
LOOK_AHEAD = 1_000_000


class Sampled(NamedTuple):
    """What is measured on a clip: uint8 `t h w c` at so many frames a second, cropped and upright."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class ReadyClip:
    """A clip as it goes into a shard.

    times: when each of its frames comes to be shown in its source, in microseconds; box: what was left of the source's
    frame, before turning it upright; codec: the encoder; perceptual: see `duplicate.video_hash`; sampled: frames for
    scores by a model; both None where nothing was to be scored; notes: see `screen.color_notes`.
    """

    video: bytes
    info: VideoInfo
    times: list[int]
    box: Box
    codec: str
    scores: dict[str, float]
    perceptual: bytes | None
    sampled: Sampled | None
    notes: dict[str, str]


def make_clips(
    source: str | Path, spans: Sequence[Span], policy: EncodePolicy, crop: bool = True, scored: bool = True
) -> Iterator[tuple[int, ReadyClip | DecodeError]]:
    """Yield the number of each span with its clip, or with why there is none; DecodeError where there is no video.

    The source is decoded once. Letterbox bars are decided on in the first second of a clip and cropped (`crop`); the
    clips in which the rest disagrees, such as one that opens in the dark, are decoded once more. Without `scored`
    there are the scores of the geometry only. Memory: samples and mp4s of the spans that are open at one time.
    """
    timeline = read_timeline(source)
    again: dict[int, Box] = {}
    for number, made in make(source, spans, timeline, policy, {}, crop, scored):
        if isinstance(made, Box):
            again[number] = made
        else:
            yield number, made
    numbers = list(again)
    boxes = {place: again[number] for place, number in enumerate(numbers)}
    redone = [spans[number] for number in numbers]
    for place, made in make(source, redone, timeline, policy, boxes, crop, scored) if redone else ():
        yield numbers[place], made


def make(
    source: str | Path,
    spans: Sequence[Span],
    timeline: Timeline,
    policy: EncodePolicy,
    boxes: dict[int, Box],
    crop: bool,
    scored: bool,
) -> Iterator[tuple[int, ReadyClip | DecodeError | Box]]:
    """Yield a clip, an error, or the box that the clip must be made with instead."""
    makers: dict[int, Maker] = {}
    for number, item in cut(source, spans, timeline):
        if isinstance(item, Shown):
            if number not in makers:
                makers[number] = Maker(spans[number], timeline, policy, boxes.get(number), crop, scored)
            makers[number].add(item)
        elif item is None:
            yield number, makers.pop(number).finish()
        else:
            makers.pop(number, None)
            yield number, item


class Maker:
    """One clip in the making; `box` if it is known."""

    def __init__(
        self, span: Span, timeline: Timeline, policy: EncodePolicy, box: Box | None, crop: bool, scored: bool
    ) -> None:
        self.policy, self.box, self.scored = policy, box, scored
        times = timeline.within(span)
        self.kept, self.rate = schedule(times, timeline.bounds(span), timeline.usual, policy.fps)
        self.scored_fps = max(SCORED_FPS, FEWEST * float(self.rate) / len(self.kept))
        due = due_frames(len(self.kept), float(self.rate), self.scored_fps) if crop or scored else []
        # How often each frame is encoded, and sampled for the scores.
        self.left, self.due = Counter(self.kept.tolist()), Counter(self.kept[due].tolist())
        self.held, self.samples = [], []
        self.crop, self.guess = crop, crop and box is None
        self.decide_at = int(times[0]) + (LOOK_AHEAD if self.guess else 0)
        self.bars, self.reformatter = Bars(), VideoReformatter()
        self.coded = self.shape = self.fitter = self.encoder = self.codec = self.error = None
        self.notes: dict[str, str] = {}

    def add(self, shown: Shown) -> None:
        """Take the next frame that is shown in the span."""
        time, frame = shown
        if self.error is not None or time not in self.left:
            return
        coded = frame.width, frame.height
        shape = frame.opaque.size(*coded)
        self.coded, self.shape = self.coded or coded, self.shape or shape
        if shape != self.shape and not same_shape(shape, self.shape):
            found = f"found frames shown as {show_size(self.shape)} and {show_size(shape)}, expected one shape"
            self.error, self.held = DecodeError(found), []
            return
        if time in self.due:
            with clock("score"):
                self.bars.add(self.reformatter.reformat(frame, *self.coded, "gray", threads=1).to_ndarray())
        self.held.append(shown)
        if time >= self.decide_at:
            self.release()

    def release(self) -> None:
        """Encode the frames that were held back; the first of them decides on box and size."""
        try:
            for time, frame in self.held:
                if self.fitter is None:
                    self.begin(frame)
                with clock("encode"):
                    fitted = self.fitter(frame, frame.opaque)
                    for _ in range(self.left.pop(time)):
                        self.encoder.add(fitted)
                if self.scored and time in self.due:
                    with clock("score"):
                        self.sample(fitted, self.due[time])
        except av.FFmpegError as error:
            self.error = DecodeError(f"{show_size(self.coded)} cannot be fitted or encoded: {error.strerror}")
        self.held = []

    def begin(self, first: av.VideoFrame) -> None:
        """Open filter and encoder."""
        if self.box is None:
            self.box = self.bars.box() if self.crop else Box(0, 0, first.height, first.width)
        self.fitter = Fitter(first, self.box, first.opaque, self.policy.short_side)
        if transfer := transfer_of(first):
            self.notes["transfer"] = transfer
        size = self.fitter.height, self.fitter.width
        self.encoder, self.codec = open_encoder(*size, float(self.rate), self.policy)

    def sample(self, fitted: av.VideoFrame, times: int) -> None:
        """Keep a frame for the scores, so many times."""
        width, height = even_size((fitted.width, fitted.height), SCORED_SIDE)
        small = self.reformatter.reformat(fitted, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1)
        self.samples += [small.to_ndarray()] * times

    def finish(self) -> ReadyClip | DecodeError | Box:
        """Return the clip, why there is none, or the box that it needs."""
        self.release()
        if self.error is not None:
            return self.error
        if self.guess and (box := self.bars.box()) != self.box:
            return box
        with clock("encode"):
            video, rate = self.encoder.finish(), self.encoder.fps
        info = VideoInfo(self.fitter.width, self.fitter.height, self.encoder.frames, rate, self.encoder.frames / rate)
        if self.fitter.clear:
            self.notes["alpha"] = "white"
        scores, perceptual, sampled = geometry(info) | {"hdr": float("transfer" in self.notes)}, None, None
        if self.scored:
            sampled = Sampled(np.stack(self.samples), self.scored_fps)
            with clock("score"):
                scores |= {"letterbox": self.bars.share(), **pixel_scores(*sampled)}
                perceptual = video_hash(sampled.frames)
        return ReadyClip(video, info, self.kept.tolist(), self.box, self.codec, scores, perceptual, sampled, self.notes)


def due_frames(count: int, rate: float, fps: float) -> np.ndarray:
    """Return the places of the frames to score, of `count` at `rate` a second: the first one in each tick of `fps`."""
    # The hundredth of a tick forgives rates that were rounded.
    ticks = np.floor(np.arange(count) * (fps / rate) + 0.01)
    return np.flatnonzero(np.diff(ticks, prepend=-1))


def pixel_scores(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Return every score of uint8 `t h w c` at `fps` that needs no model from outside, but for the letterbox."""
    return {name: value for score in PIXEL_SCORES for name, value in score(frames, fps).items()}


PIXEL_SCORES = (motion, text, overlay, quality)
