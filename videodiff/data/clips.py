"""Clips: which samples of a dataset fit which bucket, which frames of one are taken, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from videodiff.codec.cached import read_latent, read_text
from videodiff.data.buckets import Bucket, count_kinds, kinds_of
from videodiff.data.captions import EVEN, CaptionMix, draw_caption
from videodiff.data.decode import DecodeError, decode_into
from videodiff.data.manifest import Manifest, ManifestError
from videodiff.data.shards import VIDEOS, Text, read_notes, read_sample, read_texts, video_of

# What of a sample may be delivered beside its frames, and the members that it is made of.
ARRAYS = {"latent": ("latent.npy", read_latent), "text": ("text.npy", read_text)}
DELIVER = ("video", *ARRAYS)


class Task(NamedTuple):
    """What is to be read: a row of a dataset, and these frames, scaled to height x width.

    What is chosen at random is drawn by `key`; without one the first is taken, and the truth of a simulated clip too.
    """

    dataset: int
    row: dict[str, Any]
    numbers: range
    height: int
    width: int
    key: tuple[int, ...] | None


class Clips:
    """The clips of one dataset, that of this `number` among several, and the frames to take of each for a bucket.

    The window and the caption are drawn by (seed, epoch, row); with `fixed` they are the first ones. A sample that fits
    no bucket is an error unless `skip`. With `any_size` only the number of frames decides what fits: smaller pictures
    are enlarged, and cropped as far as the shape asks.
    """

    def __init__(
        self,
        manifest: Manifest,
        buckets: Sequence[Bucket],
        seed: int = 0,
        number: int = 0,
        fixed: bool = False,
        skip: bool = False,
        any_size: bool = False,
    ) -> None:
        self.manifest, self.buckets, self.seed, self.number, self.fixed = manifest, list(buckets), seed, number, fixed
        self.columns = ("frames",) if any_size else ("frames", "height", "width")
        self.counts, self.kinds = count_kinds(
            (kinds_of(self.buckets, *columns) for columns in manifest.by_shard(*self.columns)), leave_out=True
        )
        if not len(self) or not (skip or len(self) == len(manifest)):
            raise ValueError(self._misfit())

    def _misfit(self) -> str:
        first = next(index for index, fits in enumerate(self._fits()) if not fits)
        row = self.manifest.row(first)
        shapes = " or ".join(f"{bucket.span} for {bucket}" for bucket in self.buckets)
        return (
            f"{self.manifest.root}: {row['key']}: found {row['frames']} frames of {row['height']} x {row['width']} "
            f"pixels, expected at least {shapes} ({len(self.manifest) - len(self)} of {len(self.manifest)} clips do "
            f"not fit; skip_short=true leaves them out)"
        )

    def __len__(self) -> int:
        """The samples that fit a bucket."""
        return int(self.counts.sum())

    def _fits(self) -> Iterator[bool]:
        for columns in self.manifest.by_shard(*self.columns):
            yield from (kinds_of(self.buckets, *columns) > 0).tolist()

    def fitting(self) -> Iterator[int]:
        """Yield the rows that fit a bucket, in order."""
        return (index for index, fits in enumerate(self._fits()) if fits)

    def row(self, shard: int, kind: int, member: int) -> int:
        """Return the row of the `member`-th sample of a kind in a shard."""
        block: pa.Table = self.manifest.block(shard)
        kinds = kinds_of(self.buckets, *(block.column(name).to_numpy() for name in self.columns))
        return int(self.manifest.starts[shard] + np.flatnonzero(kinds == kind)[member])

    def first(self) -> Task:
        """Return what is to be read of the first row that fits a bucket, for the first bucket that it fits."""
        index = next(self.fitting())
        row = self.manifest.row(index)
        kind = int(kinds_of(self.buckets, *(np.array([row[name]]) for name in self.columns))[0])
        return self.task(index, bucket=(kind & -kind).bit_length() - 1)

    def task(self, index: int, bucket: int = 0, epoch: int = 0) -> Task:
        """Return what is to be read of a row, for a bucket, in an epoch."""
        row, shape, key = self.manifest.row(index), self.buckets[bucket], (self.seed, epoch, index)
        first = range(0, (shape.frames - 1) * shape.strides[0] + 1, shape.strides[0])
        numbers = first if self.fixed else shape.window(row["frames"], *key)
        return Task(self.number, row, numbers, shape.height, shape.width, None if self.fixed else key)


class Loaded(NamedTuple):
    """What of a sample is kept in memory: the frames of these numbers `t h w c` (None without video), and the rest."""

    frames: np.ndarray | None
    numbers: range
    captions: list[Text]
    truth: dict[str, Any] | None
    arrays: dict[str, torch.Tensor]


class Reader:
    """Read the clip of a task: fill `out` with its frames, uint8 `t h w c`, and return the rest of the sample.

    `roots`: those of the datasets, by number. `deliver`: video, latent, text; without video `out` has no frames.
    `cache_gib`: clips that are read again and again stay decoded in memory until this much is taken. `captions`: which
    of several captions are taken how often.
    """

    def __init__(
        self,
        roots: Sequence[Any],
        deliver: Sequence[str] = ("video",),
        cache_gib: float = 0.0,
        captions: CaptionMix = EVEN,
    ) -> None:
        if unknown := set(deliver) - set(DELIVER):
            raise ValueError(f"deliver: found {sorted(unknown)[0]!r}, expected some of {', '.join(DELIVER)}")
        self.roots, self.deliver, self.captions = list(roots), tuple(deliver), captions
        self.room, self.kept = int(cache_gib * 2**30), {}

    def __call__(self, task: Task, out: np.ndarray) -> dict[str, Any]:
        name = task.dataset, task.row["shard"], task.row["key"], task.height, task.width
        loaded = self.kept.get(name) or self._load(name, task, out)
        if loaded.frames is not None:
            np.copyto(out, loaded.frames[[loaded.numbers.index(number) for number in task.numbers]])
        texts = loaded.captions
        caption = texts[0].text if task.key is None else draw_caption(texts, self.captions, *task.key, 1)
        sample = {**loaded.arrays, "caption": caption, "key": task.row["key"]}
        sample["fps"] = task.row["fps"] / task.numbers.step
        return sample if task.key else sample | {"truth": truth_window(loaded.truth, task.numbers)}

    def _load(self, name: tuple[Any, ...], task: Task, out: np.ndarray) -> Loaded:
        """Read a sample, and all of its frames where they fit into the cache: the next window is another one."""
        numbers = range(task.row["frames"]) if task.key else task.numbers
        size = task.row["size"] + len(numbers) * out.shape[1] * out.shape[2] * 3 * ("video" in self.deliver)
        if size > self.room:
            return self._read(task, task.numbers, out)._replace(frames=None)
        self.room -= size
        frames = np.empty((len(numbers), *out.shape[1:]), dtype=np.uint8)
        self.kept[name] = self._read(task, numbers, frames)
        return self.kept[name]

    def _read(self, task: Task, numbers: range, out: np.ndarray) -> Loaded:
        """Read a sample; its frames go to `out`."""
        root, row = self.roots[task.dataset], task.row
        needed = [ARRAYS[name][0] for name in self.deliver if name in ARRAYS]
        members = read_sample(root, row, {"txt", "json", *needed, *(VIDEOS if "video" in self.deliver else ())})
        where = f"{root / row['shard']}: {row['key']}"
        video = video_of(members)
        if missing := (set(needed) - members.keys()) | ({"video"} if "video" in self.deliver and not video else set()):
            raise ManifestError(f"{where}: found no {min(missing)}, expected one for deliver={list(self.deliver)}")
        if "video" in self.deliver:
            try:
                decode_into(out, members[video], numbers, row["backend"])
            except DecodeError as error:
                raise DecodeError(f"{where}.{video}: {error}") from error
        arrays = {name: read(members[member], where) for name, (member, read) in ARRAYS.items() if name in self.deliver}
        frames = out if "video" in self.deliver else None
        return Loaded(frames, numbers, read_texts(members) or [Text("")], read_notes(members).get("truth"), arrays)

    def alone(self, task: Task) -> dict[str, Any]:
        """Return a whole sample, its frames as `video`."""
        out = np.empty(self.shape(task), dtype=np.uint8)
        return self(task, out) | ({"video": out} if "video" in self.deliver else {})

    def shape(self, task: Task) -> tuple[int, int, int, int]:
        """Return the shape of the frames of a task."""
        return len(task.numbers) * ("video" in self.deliver), task.height, task.width, 3


def truth_window(truth: dict[str, Any] | None, window: range) -> dict[str, Any] | None:
    """Return the truth of the frames in the window: what is a series over frames is cut, fps follows the stride."""
    if truth is None:
        return None
    frames = {name: np.asarray(truth[name])[window].tolist() for name in ("position", "velocity") if name in truth}
    return {**truth, **frames, "fps": truth["fps"] / window.step}
