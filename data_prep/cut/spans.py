"""Cut: exactly the frames of each span by their timestamps, all spans of a source from one decode."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from videodiff.data.video.fields import Fields, check_whole
from videodiff.data.video.info import DecodeError, best_stream, decoder_of, open_video, stated_rate
from videodiff.data.video.screen import Screen
from videodiff.data.video.timing import MICROSECOND, PAUSE, begins_anew, end_of, even_rate, is_even, usual_rate
from videodiff.words import count_text

# How far a span may reach beyond the end of its source, in microseconds: annotations round, and sound may end later.
SLACK = 100_000
# Metadata rounds times to milliseconds: it writes the frame at 2/30 s as 0.067 s. Read exactly, 0.067 s lies after that
# frame: the clip that begins there would lose it, and the clip before would gain it. So a time in whole milliseconds is
# taken half a millisecond earlier.
MILLISECOND = 1000


class Span(NamedTuple):
    """Seconds from the start of the source; `end` is exclusive: a frame that appears at `end` is not in the span."""

    start: float
    end: float


class Shown(NamedTuple):
    """A decoded frame and when it is shown, in microseconds from the start of the source.

    `frame.opaque`, the field that ffmpeg keeps for its callers, holds how the frame is displayed: a `Display`.
    """

    time: int
    frame: av.VideoFrame


@dataclass(frozen=True)
class Timeline:
    """The timestamps of a source, read from its packets without decoding; in microseconds from its start.

    times: when each frame is shown, ascending; end: when the last frame ends; keys: time and seek position of every
    keyframe; fps: mean rate in frames a second; usual: `fps`, or the rate that fits best where frames come unevenly;
    ranked: frames carry no time, or that of their decoding, so the frame at index i is shown at `times[i]`; joined: so
    too, as several recordings lie one behind the other in the file, each with times of its own.
    """

    times: np.ndarray
    end: int
    keys: list[tuple[int, int]]
    fps: Fraction
    usual: Fraction
    ranked: bool
    joined: bool = False

    def within(self, span: Span) -> np.ndarray:
        """Return the times of the frames of a span: from its start on and before its end, rounded as the span is.

        If the span starts in a pause, the frame that is shown during the pause belongs to it.
        """
        first, end = np.searchsorted(self.times, list(map(meant, span)))
        following = self.times[first] if first < len(self.times) else self.end
        in_pause = first > 0 and following - self.times[first - 1] > PAUSE * MICROSECOND / self.usual
        late = 2 * (following - microseconds(span.start)) > MICROSECOND / self.usual
        return self.times[first - bool(in_pause and late) : end]

    def bounds(self, span: Span) -> tuple[int, int]:
        """Return start and end of a span in microseconds, cut off at the end of the source."""
        return microseconds(span.start), min(microseconds(span.end), self.end)


def microseconds(seconds: float) -> int:
    """Round to the unit in which spans and timestamps are compared."""
    return round(seconds * MICROSECOND)


def meant(seconds: float) -> int:
    """Return the first time in microseconds that is not before `seconds` as they are written."""
    time = microseconds(seconds)
    return time if time % MILLISECOND else time - MILLISECOND // 2


class Clock:
    """Timestamps of one stream to microseconds from the start of its file, where players show time 0."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.unit, self.origin = Fraction(stream.time_base) * MICROSECOND, container.start_time or 0

    def __call__(self, ticks: int) -> int:
        return round(ticks * self.unit) - self.origin


def read_timeline(source: bytes | str | Path) -> Timeline:
    """Read the timestamps of a source; memory is 8 bytes a frame. DecodeError where it is no video."""
    try:
        with open_video(source) as container:
            stream = best_stream(container)
            clock, rate, second = Clock(container, stream), stated_rate(stream), Fields(stream)
            # `stays`: when the last frame comes, and how long it stays, in units of the stream.
            times, keys, stays, delays, untimed = [], [], (0, 0), set(), 0
            last, begins = None, []
            for packet in packets(container, stream):
                if not packet.size or second(packet):
                    continue
                if stamp(packet) is None:
                    untimed += 1
                    continue
                if packet.dts is not None:
                    if begins_anew(container.format.name, last, clock(packet.dts)):
                        begins.append(len(times))
                    last = clock(packet.dts)
                if not packet.is_discard:
                    times.append(clock(stamp(packet)))
                    stays = max(stays, (times[-1], packet.duration or 0))
                delays.add(None if None in (packet.pts, packet.dts) else packet.pts - packet.dts)
                if packet.is_keyframe:
                    keys.append((clock(stamp(packet)), packet.pts if packet.dts is None else packet.dts))
            # Where frames are shown in another order than decoded, some wait longer than others. AVI states no times of
            # showing: ffmpeg says there that all wait as long.
            ranked = bool(stream.codec_context.has_b_frames) and len(delays) == 1 and None not in delays
            # H.264 and HEVC without a container, as cameras write them, have a rate and no times.
            if not times and rate:
                times = [round(place * MICROSECOND / rate) for place in range(untimed)]
                ranked, keys = True, [(0, 0)]
            if begins:
                parts = np.split(np.array(times, np.int64), begins)
                times, ranked, keys = in_a_row(parts, round(MICROSECOND / rate) if rate else 0), True, keys[:1]
    except av.FFmpegError as error:
        raise DecodeError(f"cannot be opened: {error.strerror}") from error
    keys = sorted(keys)[: 1 if ranked else None]
    # No decoder can decode the frames before the first keyframe.
    times = np.unique(np.array([time for time in times if keys and time >= keys[0][0]], dtype=np.int64))
    if not len(times) or not rate:
        raise DecodeError(f"found {count_text(len(times), 'frame')} at {rate} fps, expected at least one")
    rate = even_rate(times, Fraction(rate))
    usual = rate if is_even(times) else usual_rate(times)
    end = end_of(times, float(stays[1] * clock.unit), rate)
    return Timeline(times, end, keys, rate, usual, ranked, bool(begins))


def in_a_row(parts: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Return the times of the parts of a recording, each moved to begin a frame after the part before it.

    gap: after a part of one frame.
    """
    found, end = [], int(parts[0].min())
    for part in parts:
        found.append(part + (end - part.min()))
        end = int(found[-1].max()) + (int(np.median(np.diff(np.sort(part)))) if len(part) > 1 else gap)
    return np.concatenate(found)


def shortfall(stream: av.VideoStream, coded: Iterable[av.Packet]) -> str:
    """Say how much earlier the packets of a stream end than its header says; empty if they do not.

    Some headers count from time 0, others from the first frame. Fewer frames than a header counts may be all there are:
    an edit list leaves out the last ones, and AVI counts a frame that stays as often as it is shown.
    """
    if stream.duration is None:
        return ""
    rate = stream.average_rate or stream.guessed_rate
    # Some containers do not say how long the last frame stays.
    usual, count, last = 1 / (rate * stream.time_base) if rate else 0, 0, 0
    for packet in coded:
        if (time := stamp(packet)) is not None:
            count, last = count + 1, max(last, time + (packet.duration or usual))
    fewer, first = count < stream.frames, stream.start_time or 0
    first = first if fewer else min(first, 0)
    found, expected = (last - first) * stream.time_base, stream.duration * stream.time_base
    # Headers round times, so a small difference is allowed, unless the header also counts more frames.
    early = microseconds(expected - found) > (MILLISECOND if fewer else SLACK)
    return f"found {float(found):g} s of video, expected {float(expected):g} s as in its header" if early else ""


def refuse(span: Span, timeline: Timeline) -> str:
    """Return why a span cannot be cut, empty where it can."""
    if not np.isfinite(span).all() or not 0 <= span.start < span.end:
        return f"found the span {span.start:g} to {span.end:g} s, expected 0 <= start < end"
    if microseconds(span.end) > timeline.end + SLACK:
        return f"found the span {span.start:g} to {span.end:g} s, expected one in the {timeline.end / MICROSECOND:g} s"
    return "" if len(timeline.within(span)) else f"found no frame between {span.start:g} and {span.end:g} s"


def group(spans: Sequence[tuple[int, int]], keys: Sequence[int]) -> list[list[int]]:
    """Group spans, given by index, into runs: a run is decoded without a seek, the next one starts at a later keyframe.

    spans: times of the first and last frame of each; keys: times of the keyframes, ascending.
    """
    runs, reached = [], 0
    for number in sorted(range(len(spans)), key=lambda number: (spans[number], number)):
        start, end = spans[number]
        before = bisect.bisect_right(keys, start) - 1
        if not runs or (before >= 0 and keys[before] >= reached):
            runs.append([])
        runs[-1].append(number)
        reached = max(reached, end)
    return runs


def cut(
    source: bytes | str | Path, spans: Sequence[Span], timeline: Timeline | None = None
) -> Iterator[tuple[int, Shown | DecodeError | None]]:
    """Yield the index of a span with its next frame, with None at its end, or with a DecodeError if it cannot be cut.

    Every span ends in exactly one None or DecodeError. `Timeline.within` says which frames belong to a span. Spans may
    overlap and come in any order. A damaged frame fails only the spans that show it. No frame is kept in memory.
    """
    timeline = read_timeline(source) if timeline is None else timeline
    fit = []
    for number, span in enumerate(spans):
        if reason := refuse(span, timeline):
            yield number, DecodeError(reason)
        else:
            fit.append(number)
    shown = [timeline.within(spans[number]) for number in fit]
    bounds = [(int(times[0]), int(times[-1])) for times in shown]
    for run in group(bounds, [time for time, _ in timeline.keys]):
        for place, item in cut_run(source, {place: bounds[place] for place in run}, timeline):
            yield fit[place], item


def cut_run(
    source: bytes | str | Path, bounds: dict[int, tuple[int, int]], timeline: Timeline
) -> Iterator[tuple[int, Shown | DecodeError | None]]:
    """Cut the spans of one run in one decode; bounds: first and last frame of each span, sorted by the first."""
    waiting, current, shown, damage = list(bounds), [], {}, []
    last = max(end for _, end in bounds.values())
    for time, frame in decode_from(source, timeline, bounds[waiting[0]][0], damage):
        while waiting and bounds[waiting[0]][0] <= time:
            current.append(waiting.pop(0))
        for number in [number for number in current if bounds[number][1] < time]:
            current.remove(number)
            yield number, complete(bounds[number], shown.pop(number, []), damage)
        if time > last:
            return
        for number in current:
            yield number, Shown(time, frame)
            first = shown.get(number, [time])[0]
            shown[number] = [first, time]
    for number in current + waiting:
        yield number, complete(bounds[number], shown.pop(number, []), damage)


def complete(bounds: tuple[int, int], shown: list[int], damage: list[tuple[int, int]]) -> DecodeError | None:
    """Return None if the first and the last frame of a span came and no frame in it is damaged; else what is wrong."""
    hurt = [start for start, end in damage if start <= bounds[1] and end > bounds[0]]
    if hurt:
        return DecodeError(f"the frame at {hurt[0] / MICROSECOND:g} s is damaged")
    if shown != [*bounds]:
        found = " to ".join(f"{time / MICROSECOND:g}" for time in shown) or "none"
        wanted = " to ".join(f"{time / MICROSECOND:g}" for time in bounds)
        return DecodeError(f"found the frames {found} s, expected {wanted} s: cut short or damaged")
    return None


def decode_from(
    source: bytes | str | Path, timeline: Timeline, wanted: int, damage: list[tuple[int, int]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield time and frame from the time `wanted` on; append start and end of each damaged stretch to `damage`.

    A container may seek too far, and a decoder may need more than one keyframe to recover (intra refresh). If the first
    frame comes too late, decoding starts again one keyframe earlier, and then one more.
    """
    latest = bisect.bisect_right([time for time, _ in timeline.keys], wanted) - 1
    earliest = max(latest - 2, 0)
    for key in range(latest, earliest - 1, -1):
        damage.clear()
        frames = (shown for shown in read_from(source, timeline, key, damage) if shown[0] >= wanted)
        first = next(frames, None)
        if first is not None and (first[0] == wanted or key == earliest):
            yield first
            yield from frames
            return


def read_from(
    source: bytes | str | Path, timeline: Timeline, key: int, damage: list[tuple[int, int]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield time and frame from the keyframe at index `key` on; key 0 reads from the start of the file.

    A packet that cannot be decoded damages all frames up to the next keyframe.
    """
    keys = [time for time, _ in timeline.keys]

    def spoil(time: int) -> None:
        following = bisect.bisect_right(keys, time)
        damage.append((time, keys[following] if following < len(keys) else timeline.end))

    with open_video(source) as container:
        stream = best_stream(container)
        decoder = decoder_of(stream)
        clock, screen = Clock(container, stream), Screen(source, container, stream)
        if key > 0:
            # If the seek fails, decoding starts at the start of the file.
            with contextlib.suppress(av.FFmpegError):
                container.seek(timeline.keys[key][1], stream=stream)
        ranked = iter(timeline.times.tolist())
        for packet in packets(container, stream):
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                frames = []
                if stamp(packet) is not None:
                    spoil(clock(stamp(packet)))
            for frame in frames:
                time = next(ranked, timeline.end) if timeline.ranked else clock(stamp(frame))
                if frame.is_corrupt:
                    spoil(time)
                check_whole(frame, decoder.name)
                frame.opaque = screen.display_of(screen.complete(frame))
                yield time, frame


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of a stream up to its end, or to the point where the file breaks: `complete` reports that."""
    with contextlib.suppress(av.FFmpegError):
        yield from container.demux(stream)


def stamp(item: av.Packet | av.VideoFrame) -> int | None:
    """Return when this is shown, in units of its stream; in some containers only the time of decoding is known."""
    return item.dts if item.pts is None else item.pts
