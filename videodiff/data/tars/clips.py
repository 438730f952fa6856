"""Clips of tars without a manifest: which bucket a sample fits is known only when its video is open."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from videodiff.data.loader.captions import EVEN, CaptionMix, draw_caption
from videodiff.data.loader.clips import truth_window
from videodiff.data.loader.quarantine import Quarantine, SampleId
from videodiff.data.loader.settings import Reading
from videodiff.data.loader.workers import Pace, Workers, read_here
from videodiff.data.order.arithmetic import draw
from videodiff.data.order.buckets import Bucket, kinds_of, misfits
from videodiff.data.samples.members import one_video
from videodiff.data.samples.shards import Text, read_notes, read_texts
from videodiff.data.tars.source import Fault, Item, Raw, read_tars, shown
from videodiff.data.video.decode import decode_into, probe
from videodiff.data.video.decoders import decoder_named
from videodiff.data.video.info import VideoInfo
from videodiff.words import count_text

UNIT = 2**20
# The kind of a refused sample that cannot be read; the other kinds are those of `misfits`.
UNREADABLE = "cannot be read"


class TarTask(NamedTuple):
    """A task for a worker: the files of a sample (None replaces an unreadable one), and the bytes for its frames.

    Its order is (first step of the stream, count of samples before it, epoch, tar). Draws are keyed by `key`; without a
    key the first window and caption are taken, and the truth of a simulated clip is read too.
    """

    order: tuple[int, ...]
    sample: SampleId
    bytes: int
    members: dict[str, bytes] | None
    key: tuple[int, ...] | None

    @property
    def shape(self) -> tuple[int]:
        """The shape of the memory for its frames; it is flat, because the bucket is not known yet."""
        return (self.bytes,)


class Decode:
    """Read a sample of a tar as a clip of a bucket that it fits; its frames go to the start of `out`, flat uint8.

    Returns caption, fps and the index of the bucket, or in `misfit` why it fits none. `any_size`: only the number of
    frames decides what fits. `decoder`: one of `decoders.DECODERS`.
    """

    def __init__(
        self, buckets: Sequence[Bucket], any_size: bool = True, captions: CaptionMix = EVEN, decoder: str = "pyav"
    ) -> None:
        self.buckets, self.any_size, self.captions, self.decoder = list(buckets), any_size, captions, decoder
        self.bytes = max(bucket.frames * bucket.height * bucket.width * 3 for bucket in self.buckets)

    def __call__(self, task: TarTask, out: np.ndarray) -> dict[str, Any]:
        if task.members is None:
            return {"lost": True}
        captions, video = read_texts(task.members) or [Text("")], task.members[one_video(task.members)]
        info = probe(video)
        index = self.choose(info, task.key)
        if index is None:
            return {"misfit": next(iter(misfits(self.buckets, *self.shape(info))))}
        bucket = self.buckets[index]
        window = bucket.first_window(info.frames) if task.key is None else bucket.window(info.frames, *task.key)
        decode_into(view(out, bucket), video, window, decoder_named(self.decoder))
        clip = {"fps": info.fps / window.step, "bucket": index}
        if task.key is None:
            truth = truth_window(read_notes(task.members).get("truth"), window)
            return clip | {"caption": captions[0].text, "truth": truth}
        return clip | {"caption": draw_caption(captions, self.captions, *task.key, 1)}

    def shape(self, info: VideoInfo) -> list[np.ndarray]:
        """Return the columns that decide which buckets a video fits."""
        sizes = [info.frames] if self.any_size else [info.frames, info.height, info.width]
        return [np.array([size]) for size in sizes]

    def fitting(self, info: VideoInfo) -> list[int]:
        """Return the indices of the buckets that a video fits."""
        kind = int(kinds_of(self.buckets, *self.shape(info))[0])
        return [index for index in range(len(self.buckets)) if kind >> index & 1]

    def choose(self, info: VideoInfo, key: tuple[int, ...] | None) -> int | None:
        """Return the index of a video's bucket: the first one whose draw keeps it, or else the last that it fits."""
        fitting = self.fitting(info)
        for index in fitting[:-1]:
            if key is None or draw(UNIT, *key, 3, index) < self.buckets[index].keep * UNIT:
                return index
        return fitting[-1] if fitting else None


class Refusals:
    """The samples in a row that gave no clip; a stream that never gives one ends with an error.

    If none of the first `few` samples can be read, the others cannot be read either: the stream ends. Samples that fit
    no shape may come in long runs. Then a line is printed after `few`, and the stream ends after `many`, or after two
    epochs without a clip.
    """

    def __init__(self, few: int = 300, many: int = 20_000) -> None:
        self.few, self.many, self.count, self.accepted = few, many, 0, False
        self.kinds: Counter[str] = Counter()
        self.epochs: set[int] = set()

    def accept(self) -> None:
        """Count a clip."""
        self.accepted, self.count = True, 0
        self.kinds.clear()
        self.epochs.clear()

    def refuse(self, kind: str, epoch: int | None, lost: Quarantine) -> str:
        """Count a sample that gave no clip; return a line to print, or raise ValueError. `epoch` None: no epochs."""
        self.count += 1
        self.kinds[kind] += 1
        self.epochs |= set() if epoch is None else {epoch}
        # Two whole epochs lie between the first and the last of four.
        stuck = not self.accepted and (list(self.kinds) == [UNREADABLE] or len(self.epochs) > 3)
        if self.count >= self.many or (stuck and self.count >= self.few):
            raise ValueError(f"data.urls: found no clip in {self.counted(lost)}")
        if self.count == self.few and not self.accepted:
            return f"data.urls: found no clip so far in {self.counted(lost)}"
        return ""

    def counted(self, lost: Quarantine) -> str:
        """Return the numbers of samples by kind, and the first reasons why some cannot be read."""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        reasons: dict[str, str] = {}
        for sample, loss in lost.losses.items():
            reasons.setdefault(loss.reason, f"{sample.shard}: {sample.key}: {loss.reason}")
        first = f"; the first reasons: {'; '.join(list(reasons.values())[:3])}" if reasons else ""
        return f"{count_text(self.count, 'sample')} in a row, expected some: {kinds}{first}"


def view(out: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Return the start of flat memory as a clip `t h w c` of a bucket."""
    shape = bucket.frames, bucket.height, bucket.width, 3
    return out[: math.prod(shape)].reshape(shape)


class Look(NamedTuple):
    """Facts about an examined sample: its video, and its number of captions."""

    info: VideoInfo
    captions: int


def look(task: TarTask, out: np.ndarray) -> Look | str:
    """Examine a sample without decoding; return a `Look`, or why it cannot be used."""
    if task.members is None:
        return "lost"
    return Look(probe(task.members[one_video(task.members)]), len(read_texts(task.members)))


def tasks_of(
    items: Iterable[Item],
    tars: Sequence[str],
    size: int,
    most: int | None = None,
    start: int = 0,
    seed: int | None = None,
) -> Iterator[TarTask]:
    """Yield the first `most` samples as tasks; without a seed each takes its first window and caption."""
    for count, item in enumerate(itertools.islice((item for item in items if isinstance(item, Raw)), most)):
        key = None if seed is None else (seed, item.epoch, item.tar, item.index)
        sample = SampleId(shown(tars[item.tar]), item.key, item.index)
        yield TarTask((start, count, item.epoch, item.tar), sample, size, item.members, key)


def keep_faults(items: Iterable[Item], faults: list[Fault]) -> Iterator[Item]:
    """Pass samples on, and collect the faults."""
    for item in items:
        if isinstance(item, Fault):
            faults.append(item)
        yield item


def nothing(asked: TarTask, attempt: int) -> TarTask:
    """Return the task without members that replaces an unreadable one."""
    return asked._replace(sample=asked.sample._replace(dataset=-attempt), members=None)


def read_tasks(
    tasks: Iterable[TarTask],
    function: Callable[..., Any],
    size: int,
    reading: Reading,
    lost: Quarantine,
    ahead: int = 0,
) -> Iterator[tuple[TarTask, Any, np.ndarray]]:
    """Read tasks by the workers; yield each task in order with the function's result and the memory it wrote to.

    An unreadable task goes into `lost`, and comes with the function's result for a task without members.
    """
    asked = ([task] for task in tasks)
    if not reading.num_workers:
        reads = read_here(function, asked, nothing, lost)
        yield from ((read.tasks[0], read.rest[0], read.frames[0]) for read in reads)
        return
    pace = Pace(ahead + 2 * reading.num_workers, queued=1)
    with (
        Workers(function, reading.num_workers, size, nothing, lost, reading.timeout, pace) as pool,
        contextlib.closing(pool.batches(asked)) as reads,
    ):
        for read in reads:
            yield read.tasks[0], read.rest[0], read.frames[0]


def first_clips(
    tars: Sequence[str], bucket: Bucket, count: int, reading: Reading, lost: Quarantine
) -> list[dict[str, Any]]:
    """Return the first clips of tars that fit a bucket, in order, each with its first window and caption.

    Samples that do not fit are skipped, and unreadable ones go into `lost`; so every rank gets the same clips.
    """
    decode = Decode([bucket], decoder=reading.decoder)
    faults: list[Fault] = []
    tasks = tasks_of(keep_faults(read_tars(tars, range(len(tars))), faults), tars, decode.bytes)
    found = []
    with contextlib.closing(read_tasks(tasks, decode, decode.bytes, reading, lost)) as clips:
        for task, rest, memory in clips:
            if "bucket" in rest:
                found.append({**rest, "key": task.sample.key, "video": view(memory, bucket).copy(), "task": task})
            if len(found) == count:
                break
    if not found:
        raise ValueError(
            f"{shown(tars[0])}: found no usable sample in {count_text(len(tars), 'tar')}, expected "
            f"some{why(lost, faults)}"
        )
    return found


def why(lost: Quarantine, faults: Sequence[Fault]) -> str:
    """Return the end of a message about tars without a usable sample: the first fault that was found."""
    found = [*faults, *(Fault(sample.shard, sample.key, loss.reason) for sample, loss in lost.losses.items())]
    return f"; the first one: {found[0].tar}: {found[0].key} {found[0].reason}" if found else ""
