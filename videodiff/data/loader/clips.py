"""Clips: which samples of a dataset fit which bucket, which frames are taken from each, and how a sample is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from videodiff.codec.cached import (
    check_record,
    digest,
    latent_record,
    read_latent,
    read_text,
    text_names,
    text_record,
)
from videodiff.data.encoded.windows import Windows
from videodiff.data.loader.captions import EVEN, CaptionMix, draw_caption
from videodiff.data.loader.quarantine import SampleId
from videodiff.data.loader.settings import Reading
from videodiff.data.order.buckets import Bucket, count_kinds, kinds_of, mask, misfits
from videodiff.data.samples.manifest import Manifest, ManifestError
from videodiff.data.samples.shards import (
    SIDECARS,
    VIDEOS,
    Text,
    checked_video,
    read_notes,
    read_sample,
    read_texts,
    video_of,
)
from videodiff.data.samples.sidecars import SidecarError
from videodiff.data.storage.cache import is_remote
from videodiff.data.video.decode import DecodeError, decode_into
from videodiff.data.video.decoders import decoder_named
from videodiff.words import count_text

# Parts of a sample that a reader can deliver.
DELIVER = ("video", "latent", "text")


class Task(NamedTuple):
    """One sample to read for `order` (step, position): a row of a dataset, and frames of it scaled to height x width.

    Random choices are drawn by `key`. Without a key the first caption is taken, and the truth of a simulated clip is
    read too. `pixels`: whether frames are read; `windows`: how cached latents are cut, None without latents.
    """

    order: tuple[int, int]
    dataset: int
    row: dict[str, Any]
    numbers: range
    height: int
    width: int
    key: tuple[int, ...] | None
    pixels: bool = True
    windows: Windows | None = None

    @property
    def sample(self) -> SampleId:
        """The identity of its sample."""
        return SampleId(self.row["shard"], self.row["key"], self.row["offset"], self.dataset)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of its frames, `t h w c`; zero frames if no pixels are read."""
        return len(self.numbers) * self.pixels, self.height, self.width, 3


class Clips:
    """The clips of the dataset at index `dataset`, and the frames to take from each clip for a bucket.

    Window and caption are drawn by (seed, epoch, row); with `fixed` the first ones are taken. A sample that fits no
    bucket is an error unless `skip`; `misfits` counts such samples by reason. `rates` counts for each bucket the frame
    rates of its clips after the stride. With `any_size` only the number of frames decides what fits: smaller pictures
    are enlarged, and cropped to the shape. If latents are delivered, a sample fits the buckets whose size its latents
    have, and only windows that can be cut from the latents are drawn.
    """

    def __init__(
        self,
        manifest: Manifest,
        buckets: Sequence[Bucket],
        seed: int = 0,
        dataset: int = 0,
        fixed: bool = False,
        skip: bool = False,
        any_size: bool = False,
        deliver: Sequence[str] = ("video",),
    ) -> None:
        self.manifest, self.buckets, self.seed, self.dataset, self.fixed = manifest, list(buckets), seed, dataset, fixed
        self.records = {what: record_of(manifest, what) for what in ("latent", "text") if what in deliver}
        self.pixels = "video" in deliver
        self.windows = windows_of(self.records, self.buckets, str(manifest.path))
        self.columns = ("frames",) if any_size and self.windows is None else ("frames", "height", "width")
        self.misfits: Counter[str] = Counter()
        self.rates: list[Counter[float]] = [Counter() for _ in self.buckets]
        self.enlarged = 0
        columns = manifest.by_shard("frames", "height", "width", "fps")
        self.counts, self.kinds = count_kinds(map(self._count, columns), leave_out=True)
        if not len(self) or not (skip or len(self) == len(manifest)):
            raise ValueError(self._misfit())

    def _count(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Return the kind of each sample of a shard; count those that fit no bucket, and the rates of the rest."""
        frames, height, width, fps = columns
        shape = columns[: len(self.columns)]
        kinds = self.kinds_of(*shape)
        # With `any_size` a sample may be smaller than each of its buckets; it is enlarged then.
        large = np.any([(height >= bucket.height) & (width >= bucket.width) for bucket in self.buckets], axis=0)
        self.enlarged += int(np.count_nonzero((kinds > 0) & ~large))
        if not kinds.all():
            self.misfits.update(self._reasons([column[kinds == 0] for column in shape]))
        for number, (bucket, rates) in enumerate(zip(self.buckets, self.rates, strict=True)):
            left = (kinds >> number & 1).astype(bool)
            for stride in bucket.strides:
                usable = left & ((bucket.frames - 1) * stride < frames)
                found, count = np.unique(np.round(fps[usable] / stride, 3), return_counts=True)
                rates.update(dict(zip(found.tolist(), count.tolist(), strict=True)))
                left = left & ~usable if self.fixed else left
        return kinds

    def _reasons(self, shape: Sequence[np.ndarray]) -> dict[str, int]:
        reasons = misfits(self.buckets, *shape)
        # Latents are neither scaled nor cropped, so their size must be equal.
        other = len(shape[0]) - sum(reasons.values())
        return reasons | ({"latents of another size": other} if other else {})

    @property
    def left_out(self) -> str:
        """One line: how many samples fit no bucket, by reason."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.misfits.most_common())
        return f"{self.misfits.total():,} of {len(self.manifest):,} clips do not fit: {reasons}"

    @property
    def said(self) -> list[str]:
        """Remarks for the user before training: how many clips are left out, and how many are enlarged."""
        shapes = " or ".join(map(str, self.buckets))
        small = f"{self.enlarged:,} of {len(self):,} clips are smaller than {shapes} and are enlarged"
        return ([self.left_out] if self.misfits else []) + ([small] if self.enlarged else [])

    def _misfit(self) -> str:
        first = next(index for index, fits in enumerate(self._fits()) if not fits)
        row = self.manifest.row(first)
        shapes = " or ".join(f"{bucket.span} for {bucket}" for bucket in self.buckets)
        remedy = "data.skip_short=true leaves them out" if len(self) else "no clip is left to train on"
        return (
            f"{self.manifest.root}: {row['key']}: found {count_text(row['frames'], 'frame')} of {row['height']} x "
            f"{row['width']} pixels, expected at least {shapes} ({self.left_out}; {remedy})"
        )

    def __len__(self) -> int:
        """The number of samples that fit a bucket."""
        return int(self.counts.sum())

    def _fits(self) -> Iterator[bool]:
        for columns in self.manifest.by_shard(*self.columns):
            yield from (self.kinds_of(*columns) > 0).tolist()

    def fitting(self) -> Iterator[int]:
        """Yield the rows that fit a bucket, in order."""
        return (index for index, fits in enumerate(self._fits()) if fits)

    def worded(self, most: int) -> Iterator[int]:
        """Yield the rows that fit a bucket and may have a caption of more than `most` words.

        All rows that fit are yielded if the manifest does not count words.
        """
        start, counted = 0, ["words"] if self.manifest.counts_words else []
        for columns in self.manifest.by_shard(*self.columns, *counted):
            shape, words = columns[: len(self.columns)], columns[len(self.columns) :]
            # An unknown count is NaN; the negated comparison makes it count as long.
            long = ~(words[0] <= most) if words else np.ones(len(shape[0]), dtype=bool)
            yield from (start + np.flatnonzero((self.kinds_of(*shape) > 0) & long)).tolist()
            start += len(shape[0])

    def row(self, shard: int, kind: int, member: int) -> int:
        """Return the row of the `member`-th sample of a kind in a shard."""
        block: pa.Table = self.manifest.block(shard)
        kinds = self.kinds_of(*(block.column(name).to_numpy() for name in self.columns))
        return int(self.manifest.starts[shard] + np.flatnonzero(kinds == kind)[member])

    def first(self) -> Task:
        """Return the task for the first row that fits a bucket, and for the first bucket that it fits."""
        index = next(self.fitting())
        row = self.manifest.row(index)
        kind = int(self.kinds_of(*(np.array([row[name]]) for name in self.columns))[0])
        return self.task(index, bucket=(kind & -kind).bit_length() - 1)

    def kinds_of(self, *columns: np.ndarray) -> np.ndarray:
        """Return the kind of each sample, see `buckets.kinds_of`."""
        if self.windows is None:
            return kinds_of(self.buckets, *columns)
        frames, height, width = columns
        return mask([b.long_enough(frames) & (height == b.height) & (width == b.width) for b in self.buckets])

    def check_encoders(self, codec: nn.Module, text: nn.Module) -> None:
        """Raise if the cached latents or texts were made by another codec or text encoder."""
        where, found = str(self.manifest.path), self.records
        if "latent" in found:
            windows = {name: found["latent"][name] for name in ("stride", "frames", "latents")}
            check_record("latent", found["latent"], latent_record(codec, found["latent"]["sizes"], windows), where)
        if "text" in found:
            check_record("text", found["text"], text_record(text), where)

    def task(self, index: int, bucket: int = 0, epoch: int = 0, order: tuple[int, int] = (0, 0)) -> Task:
        """Return the task for a row, in a bucket and an epoch, at `order` (step, position)."""
        row, shape, key = self.manifest.row(index), self.buckets[bucket], (self.seed, epoch, index)
        if self.fixed:
            numbers, key = shape.first_window(row["frames"]), None
        else:
            draw_window = shape.window if self.windows is None else partial(self.windows.draw, shape)
            numbers = draw_window(row["frames"], *key)
        return Task(order, self.dataset, row, numbers, shape.height, shape.width, key, self.pixels, self.windows)


def record_of(manifest: Manifest, what: str) -> dict[str, Any]:
    """Return the manifest's record of the encoder that made the latents or the text of its dataset."""
    record = manifest.encoded.get(what)
    if record is None:
        raise ManifestError(
            f"{manifest.path}: found no record of the encoder of {what}.npy, expected one for deliver={what}: make "
            f"the dataset by `videodiff cache`"
        )
    how = {name: value for name, value in record.items() if name not in ("of", "fingerprint")}
    if record.get("fingerprint") != digest(how):
        raise ManifestError(f"{manifest.path}: found a {what} record with another fingerprint, expected {digest(how)}")
    return record


def windows_of(records: dict[str, dict[str, Any]], buckets: Sequence[Bucket], where: str) -> Windows | None:
    """Return how latents are cut, None without latents; ValueError if they cannot fill a bucket."""
    if "latent" not in records:
        return None
    record = records["latent"]
    windows = Windows(*(record[name] for name in ("stride", "frames", "latents")))
    for bucket in buckets:
        try:
            windows.check(bucket)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if [bucket.height, bucket.width] not in record["sizes"]:
            sizes = " or ".join(f"{height} x {width}" for height, width in record["sizes"])
            raise ValueError(
                f"{where}: found latents of {sizes} pixels, expected latents of {bucket.height} x {bucket.width} pixels"
            )
    return windows


class Loaded(NamedTuple):
    """The parts of a sample in memory: the frames `t h w c` at `numbers`, all latents, the encoded text by caption."""

    frames: np.ndarray | None
    numbers: range
    captions: list[Text]
    truth: Any
    latent: Tensor | None
    texts: list[Tensor]


class Reader:
    """Read the clip of a task: fill `out` with its frames, uint8 `t h w c`, and return the rest of the sample.

    `roots`: the root of each dataset, by index. `deliver`: video, latent, text; without video `out` has no frames.
    Latent and text are numpy arrays: a tensor would be sent to another process as shared memory, with a file descriptor
    each. `cache_gib`: decoded clips stay in memory until they take this much. `captions`: how likely each caption of a
    sample is drawn. `decoder`: one of `decoders.DECODERS`.
    """

    def __init__(
        self,
        roots: Sequence[Any] | Mapping[int, Any],
        deliver: Sequence[str] = ("video",),
        cache_gib: float = 0.0,
        captions: CaptionMix = EVEN,
        decoder: str = "pyav",
    ) -> None:
        if unknown := set(deliver) - set(DELIVER):
            raise ValueError(f"deliver: found {sorted(unknown)[0]!r}, expected some of {', '.join(DELIVER)}")
        self.roots, self.deliver, self.captions = roots, tuple(deliver), captions
        self.room, self.kept, self.decoder = int(cache_gib * 2**30), {}, decoder

    @classmethod
    def of(cls, roots: Mapping[int, Any], reading: Reading, cache: bool = True) -> Reader:
        """Return a reader for these settings; with `cache` it gets its share of the memory for decoded clips."""
        gib = reading.cache_gib / max(reading.num_workers, 1) if cache else 0.0
        return cls(roots, reading.deliver, gib, reading.mix, reading.decoder)

    def bring(self, task: Task) -> dict[str, bytes] | None:
        """Return the files of a sample that a host has, in the disk cache or not; None if it is here."""
        here = self._name(task) in self.kept or not is_remote(self.roots[task.dataset])
        return None if here else self._members(task)

    def __call__(self, task: Task, out: np.ndarray, members: dict[str, bytes] | None = None) -> dict[str, Any]:
        loaded = self.kept.get(self._name(task)) or self._load(task, out, members)
        if loaded.frames is not None:
            np.copyto(out, loaded.frames[[loaded.numbers.index(number) for number in task.numbers]])
        captions = loaded.captions
        caption = captions[0].text if task.key is None else draw_caption(captions, self.captions, *task.key, 1)
        sample = {"caption": caption, "key": task.row["key"]}
        if loaded.latent is not None:
            sample["latent"] = task.windows.cut(loaded.latent, task.numbers, task.row["frames"]).numpy()
        if loaded.texts:
            stored = dict(zip((each.text for each in captions), loaded.texts, strict=True))
            # The empty caption is stored only for samples without captions; elsewhere it has no tokens: `encode_text`.
            sample["text"] = stored.get(caption, loaded.texts[0][:0]).numpy()
        sample["fps"] = task.row["fps"] / task.numbers.step
        return sample if task.key else sample | {"truth": truth_window(loaded.truth, task.numbers)}

    def _name(self, task: Task) -> tuple[Any, ...]:
        return task.dataset, task.row["shard"], task.row["key"], task.height, task.width

    def _load(self, task: Task, out: np.ndarray, members: dict[str, bytes] | None) -> Loaded:
        """Read a sample; read all of its frames if they fit into the cache, because the next window will differ."""
        numbers = range(task.row["frames"]) if task.key else task.numbers
        # Cached arrays are float16 on the disk and float32 in memory.
        arrays = task.row["size"] * (1 + (self.deliver != ("video",)))
        size = arrays + len(numbers) * out.shape[1] * out.shape[2] * 3 * ("video" in self.deliver)
        if size > self.room:
            return self._read(task, task.numbers, out, members)._replace(frames=None)
        frames = np.empty((len(numbers), *out.shape[1:]), dtype=np.uint8)
        loaded = self.kept[self._name(task)] = self._read(task, numbers, frames, members)
        self.room -= size
        return loaded

    def _arrays(self, task: Task) -> dict[str, list[str]]:
        """Return the names of the files with latents, and of those with text."""
        names = {"latent": ["latent.npy"], "text": text_names(task.row["captions"])}
        return {name: own for name, own in names.items() if name in self.deliver}

    def _members(self, task: Task) -> dict[str, bytes]:
        """Return the files of a sample that are needed."""
        needed = chain(*self._arrays(task).values(), VIDEOS if "video" in self.deliver else ())
        return read_sample(self.roots[task.dataset], task.row, {*SIDECARS, *needed})

    def _read(self, task: Task, numbers: range, out: np.ndarray, members: dict[str, bytes] | None) -> Loaded:
        """Read a sample; its frames go to `out`."""
        root, row, names = self.roots[task.dataset], task.row, self._arrays(task)
        members = self._members(task) if members is None else members
        needed, where = {*chain(*names.values())}, f"{root / row['shard']}: {row['key']}"
        video = video_of(members)
        if missing := (needed - members.keys()) | ({"video"} if "video" in self.deliver and not video else set()):
            arrays = read_sample(root, row, {"latent.npy", "text.npy"})
            there = [what for what in ("latent", "text") if f"{what}.npy" in arrays]
            other = f"; data.deliver=[{','.join(there)}] reads what it has" if there else ""
            asked = f"data.deliver=[{','.join(self.deliver)}]"
            raise ManifestError(f"{where}: found no {min(missing)}, expected one for {asked}{other}")
        if "video" in self.deliver:
            data = checked_video(members, row, where)
            try:
                decode_into(out, data, numbers, decoder_named(self.decoder))
            except DecodeError as error:
                raise DecodeError(f"{where}.{video}: {error}") from error
        latent = read_latent(members["latent.npy"], where) if "latent" in self.deliver else None
        texts = [read_text(members[name], where) for name in names.get("text", ())]
        try:
            captions, truth = read_texts(members) or [Text("")], read_notes(members).get("truth")
        except SidecarError as error:
            raise SidecarError(f"{where}: {error}") from error
        return Loaded(out if "video" in self.deliver else None, numbers, captions, truth, latent, texts)

    def alone(self, task: Task) -> dict[str, Any]:
        """Read a task in this process; return the sample with its frames as `video`."""
        out = np.empty(task.shape, dtype=np.uint8)
        return self(task, out) | ({"video": out} if "video" in self.deliver else {})


def truth_window(truth: Any, window: range) -> dict[str, Any] | None:
    """Return the truth of the frames in the window: series over frames are cut, and fps is divided by the stride.

    Notes of other people may call something else so: that is no truth of a simulated clip.
    """
    if not isinstance(truth, dict) or not isinstance(truth.get("fps"), int | float):
        return None
    frames = {name: np.asarray(truth[name])[window].tolist() for name in ("position", "velocity") if name in truth}
    return {**truth, **frames, "fps": truth["fps"] / window.step}
