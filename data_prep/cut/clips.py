"""Clips: the frames of one decode become mp4s, scores and hashes, clip by clip, as the frames come."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from data_prep.cut.deinterlace import Deinterlacer
from data_prep.cut.encode import EncodePolicy, Fitter, open_encoder, schedule
from data_prep.cut.spans import Shown, Span, Timeline, cut, read_timeline
from data_prep.engine.stopwatch import clock
from data_prep.score.duplicate import video_hash
from data_prep.score.geometry import geometry
from data_prep.score.interlaced import COMBED, Combs
from data_prep.score.letterbox import Bars, Box
from data_prep.score.pixel_score import DEFAULT, pixel_scores
from videodiff.data.video.geometry import even_size, same_shape
from videodiff.data.video.info import DecodeError, VideoInfo
from videodiff.data.video.screen import light_notes, show_size

# Scored frames: how many a second, at least how many a clip, and their short side in pixels.
SCORED_FPS, FEWEST, SCORED_SIDE = 2.0, 4, 256
# After this many microseconds of a clip its bars and its fields are decided; its frames are held back until then.
LOOK_AHEAD = 1_000_000


class Sampled(NamedTuple):
    """What is measured on a clip: uint8 `t h w c` at so many frames a second, cropped and upright."""

    frames: np.ndarray
    fps: float


class Look(NamedTuple):
    """How a clip is made: the box inside the bars, and which field comes first (None: frames are not deinterlaced)."""

    box: Box
    top_first: bool | None


@dataclass(frozen=True)
class ReadyClip:
    """A clip as it goes into a shard.

    times: when each of its frames comes to be shown in its source, in microseconds; box: what was left of the source's
    frame, before turning it upright; deinterlaced: its frames are no longer woven of two fields; codec: the encoder;
    perceptual: see `duplicate.video_hash`; sampled: frames for scores by a model; both None where nothing was to be
    scored; notes: see `screen.color_notes`.
    """

    video: bytes
    info: VideoInfo
    times: list[int]
    box: Box
    deinterlaced: bool
    codec: str
    scores: dict[str, float]
    perceptual: bytes | None
    sampled: Sampled | None
    notes: dict[str, str]


def make_clips(
    source: bytes | str | Path,
    spans: Sequence[Span],
    policy: EncodePolicy,
    crop: bool = True,
    scored: bool = True,
    scores: Sequence[str] = DEFAULT,
) -> Iterator[tuple[int, ReadyClip | DecodeError]]:
    """Yield the index of each span with its clip, or with the reason why it has none; DecodeError if it is no video.

    The source is decoded once. The first second of a clip decides on its letterbox bars (with `crop`) and its fields
    (if the policy asks for them). If the rest of the clip disagrees, as in a clip that opens in the dark, the clip is
    decoded once more. Without `scored` only the scores of the geometry are computed. Memory: samples and mp4s of the
    spans that are open at the same time.
    """
    timeline, chosen = read_timeline(source), tuple(scores) if scored else None
    again: dict[int, Look] = {}
    for number, made in make(source, spans, timeline, policy, {}, crop, chosen):
        if isinstance(made, Look):
            again[number] = made
        else:
            yield number, made
    numbers = list(again)
    looks = {place: again[number] for place, number in enumerate(numbers)}
    redone = [spans[number] for number in numbers]
    for place, made in make(source, redone, timeline, policy, looks, crop, chosen) if redone else ():
        yield numbers[place], made


def make(
    source: bytes | str | Path,
    spans: Sequence[Span],
    timeline: Timeline,
    policy: EncodePolicy,
    looks: dict[int, Look],
    crop: bool,
    scores: Sequence[str] | None,
) -> Iterator[tuple[int, ReadyClip | DecodeError | Look]]:
    """Yield a clip, an error, or the look with which the clip must be made again."""
    makers: dict[int, Maker] = {}
    for number, item in cut(source, spans, timeline):
        if isinstance(item, Shown):
            if number not in makers:
                makers[number] = Maker(spans[number], timeline, policy, looks.get(number), crop, scores)
            makers[number].add(item)
        elif item is None:
            yield number, makers.pop(number).finish()
        else:
            makers.pop(number, None)
            yield number, item


class Maker:
    """One clip in the making; look: None if it is not known yet; scores: None for the scores of the geometry only."""

    def __init__(
        self,
        span: Span,
        timeline: Timeline,
        policy: EncodePolicy,
        look: Look | None,
        crop: bool,
        scores: Sequence[str] | None,
    ) -> None:
        scored = scores is not None
        self.policy, self.look, self.scored, self.scores = policy, look, scored, scores
        times = timeline.within(span)
        self.kept, self.rate = schedule(times, timeline.bounds(span), timeline.usual, policy.fps)
        self.scored_fps = max(SCORED_FPS, FEWEST * float(self.rate) / len(self.kept))
        looked_at = crop or scored or policy.deinterlace != "off"
        due = due_frames(len(self.kept), float(self.rate), self.scored_fps) if looked_at else []
        # How often each frame is encoded, and sampled for the scores.
        self.left, self.due = Counter(self.kept.tolist()), Counter(self.kept[due].tolist())
        self.held, self.samples = [], []
        self.crop, self.guess = crop, look is None and (crop or policy.deinterlace != "off")
        self.decide_at = int(times[0]) + (LOOK_AHEAD if self.guess else 0)
        self.bars, self.combs, self.reformatter = Bars(), Combs(), VideoReformatter()
        self.coded = self.shape = self.fitter = self.encoder = self.codec = self.error = None
        self.deinterlacer: Deinterlacer | None = None
        self.notes: dict[str, str] = {}

    def add(self, shown: Shown) -> None:
        """Take the next frame that is shown in the span."""
        time, frame = shown
        with clock("score"):
            if time in self.due:
                self.combs.begin()
            self.combs.add(frame, self.reformatter)
        kept = time in self.left
        if self.error is not None or not (kept or self.may_weave()):
            return
        coded = frame.width, frame.height
        shape = frame.opaque.size(*coded)
        self.coded, self.shape = self.coded or coded, self.shape or shape
        if kept and shape != self.shape and not same_shape(shape, self.shape):
            found = f"found frames shown as {show_size(self.shape)} and {show_size(shape)}, expected one shape"
            self.error, self.held = DecodeError(found), []
            return
        if time in self.due:
            with clock("score"):
                self.bars.add(self.reformatter.reformat(frame, *self.coded, "gray", threads=1).to_ndarray())
        self.held.append(shown)
        if time >= self.decide_at:
            self.release()

    def may_weave(self) -> bool:
        """Tell whether frames that the clip does not show are wanted: a field is filled from the frames beside it."""
        return self.policy.deinterlace != "off" and (self.look is None or self.look.top_first is not None)

    def release(self, last: bool = False) -> None:
        """Encode the frames that were held back; the first of them decides on look and size."""
        try:
            for shown in self.held:
                if self.fitter is None:
                    self.begin(shown.frame)
                for source, picture in self.deinterlacer(shown) if self.deinterlacer else [(shown, shown.frame)]:
                    self.encode(source, picture)
            for source, picture in self.deinterlacer.rest() if last and self.deinterlacer else []:
                self.encode(source, picture)
        except av.FFmpegError as error:
            self.error = DecodeError(f"{show_size(self.coded)} cannot be fitted or encoded: {error.strerror}")
        self.held = []

    def encode(self, source: Shown, picture: av.VideoFrame) -> None:
        """Fit and encode what was made of a frame, as often as the clip shows it."""
        time = source.time
        if time not in self.left:
            return
        with clock("encode"):
            fitted = self.fitter(picture, source.frame.opaque)
            for _ in range(self.left.pop(time)):
                self.encoder.add(fitted)
        if self.scored and time in self.due:
            with clock("score"):
                self.sample(fitted, self.due[time])

    def seen(self) -> Look:
        """Return the look of the clip, judged by the frames so far."""
        box = self.bars.box() if self.crop else Box(0, 0, *self.coded[::-1])
        mode = self.policy.deinterlace
        woven = mode == "on" or (mode == "auto" and self.combs.share() > COMBED)
        return Look(box, self.combs.top_first >= 0 if woven else None)

    def begin(self, first: av.VideoFrame) -> None:
        """Open filters and encoder."""
        if self.look is None:
            self.look = self.seen()
        if self.look.top_first is not None:
            self.deinterlacer = Deinterlacer(self.look.top_first)
        self.fitter = Fitter(first, self.look.box, first.opaque, self.policy.short_side)
        self.notes |= light_notes(first)
        size = self.fitter.height, self.fitter.width
        self.encoder, self.codec = open_encoder(*size, float(self.rate), self.policy)

    def sample(self, fitted: av.VideoFrame, times: int) -> None:
        """Keep a frame for the scores, so many times."""
        width, height = even_size((fitted.width, fitted.height), SCORED_SIDE)
        small = self.reformatter.reformat(fitted, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1)
        self.samples += [small.to_ndarray()] * times

    def finish(self) -> ReadyClip | DecodeError | Look:
        """Return the clip, the error that prevents it, or the look that it needs."""
        self.release(last=True)
        if self.error is not None:
            return self.error
        if self.guess and (look := self.seen()) != self.look:
            return look
        with clock("encode"):
            video, rate = self.encoder.finish(), self.encoder.fps
        info = VideoInfo(self.fitter.width, self.fitter.height, self.encoder.frames, rate, self.encoder.frames / rate)
        if self.fitter.clear:
            self.notes["alpha"] = "white"
        scores, perceptual, sampled = geometry(info) | {"hdr": float("transfer" in self.notes)}, None, None
        if self.scored:
            sampled = Sampled(np.stack(self.samples), self.scored_fps)
            with clock("score"):
                combed = 0.0 if self.deinterlacer else self.combs.share()
                scores |= {"letterbox": self.bars.share(), "interlaced": combed, **pixel_scores(*sampled, self.scores)}
                perceptual = video_hash(sampled.frames)
        box, woven = self.look.box, self.deinterlacer is not None
        return ReadyClip(
            video, info, self.kept.tolist(), box, woven, self.codec, scores, perceptual, sampled, self.notes
        )


def due_frames(count: int, rate: float, fps: float) -> np.ndarray:
    """Return the places of the frames to score, of `count` at `rate` a second: the one shown at each tick of `fps`.

    So they show the same moments whatever the rate. The hundredth of a frame forgives rates that were rounded.
    """
    ticks = np.arange(math.ceil(count * fps / rate - 0.01))
    return np.unique(np.floor(ticks * (rate / fps) + 0.01).astype(int).clip(max=count - 1))
