"""From the order to batches: what is read is decided by integers alone, never by timing or workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from videodiff.codec.cached import pad_text, read_latent, read_text
from videodiff.data.buckets import Bucket, count_kinds, kinds_of
from videodiff.data.decode import DecodeError, backend_for, decode, resize
from videodiff.data.manifest import Manifest, ManifestError
from videodiff.data.mixture import Mixture
from videodiff.data.order import ALONE, Mesh, check_batch_sizes, draw
from videodiff.data.shards import read_captions, read_notes, read_sample

# What of a sample may be delivered, and the members that it is made of.
MEMBERS = {"video": "mp4", "latent": "latent.npy", "text": "text.npy"}


class Item(NamedTuple):
    """One place in a batch: optimizer step, position in the global batch, and which sample in which bucket it holds."""

    step: int
    position: int
    epoch: int
    index: int
    bucket: int = 0
    dataset: int = 0


class Loaded(NamedTuple):
    """What of a sample is kept in memory: the frames of these numbers `t h w c` (None without video), and the rest."""

    frames: np.ndarray | None
    numbers: range
    captions: list[str]
    truth: dict[str, Any] | None
    arrays: dict[str, torch.Tensor]


class Clips(Dataset):
    """The clips of one dataset, scaled and cropped to the shape of their bucket; `clips[Item]` gives a sample.

    The window and the caption are drawn by (seed, epoch, index); with `fixed` they are the first ones, and the truth
    of a simulated clip is delivered too. `cache_gib`: decoded clips are kept in memory until this much is taken.
    A sample that fits no bucket is an error unless `skip`; then `index` counts the others. With `any_size` only
    the number of frames decides what fits: smaller pictures are enlarged, and cropped as far as the shape asks.
    """

    def __init__(
        self,
        manifest: Manifest,
        buckets: Sequence[Bucket],
        seed: int = 0,
        cache_gib: float = 0.0,
        deliver: Sequence[str] = ("video",),
        fixed: bool = False,
        skip: bool = False,
        any_size: bool = False,
    ) -> None:
        if unknown := set(deliver) - MEMBERS.keys():
            raise ValueError(f"deliver: found {sorted(unknown)[0]!r}, expected some of {', '.join(MEMBERS)}")
        self.manifest, self.seed, self.fixed, self.deliver = manifest, seed, fixed, tuple(deliver)
        self.buckets, frames = list(buckets), manifest.column("frames")
        if any_size:
            self.kinds = sum(bucket.long_enough(frames).astype(np.int64) << i for i, bucket in enumerate(self.buckets))
        else:
            self.kinds = kinds_of(frames, manifest.column("height"), manifest.column("width"), self.buckets)
        self.rows = self._fitting(skip)
        self.room, self.cache = int(cache_gib * 2**30), {}

    def _fitting(self, skip: bool) -> np.ndarray:
        fits = self.kinds > 0
        if not fits.any() or not (skip or fits.all()):
            row = self.manifest.row(int(np.argmin(fits)))
            shapes = " or ".join(f"{bucket.span} for {bucket}" for bucket in self.buckets)
            raise ValueError(
                f"{self.manifest.root}: {row['key']}: found {row['frames']} frames of {row['height']} x {row['width']} "
                f"pixels, expected at least {shapes} ({(~fits).sum()} of {len(fits)} clips do not fit; skip_short=true "
                f"leaves them out)"
            )
        return np.flatnonzero(fits)

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return how many samples of each kind each shard holds, and the kinds: what the order needs to know."""
        return count_kinds(np.split(self.kinds, self.manifest.starts[1:-1]), leave_out=True)

    def index(self, shard: int, kind: int, member: int) -> int:
        """Return the index of the `member`-th sample of a kind in a shard."""
        start, stop = self.manifest.starts[shard : shard + 2]
        return int(np.searchsorted(self.rows, start + np.flatnonzero(self.kinds[start:stop] == kind)[member]))

    def __getitem__(self, item: Item | tuple[int, int, int, int]) -> dict[str, Any]:
        item = Item(*item)
        row = self.manifest.row(int(self.rows[item.index]))
        window = self._window(row, item)
        loaded = self.cache.get((item.bucket, item.index)) or self._load(row, item, window)
        choice = 0 if self.fixed else draw(len(loaded.captions), *self._key(item), 1)
        sample = {**loaded.arrays, "caption": loaded.captions[choice], "fps": row["fps"] / window.step}
        sample |= {"key": row["key"], "step": item.step, "position": item.position}
        if loaded.frames is not None:
            sample["video"] = loaded.frames[[loaded.numbers.index(number) for number in window]]
        if self.fixed:
            sample["truth"] = truth_window(loaded.truth, window)
        return sample

    def _key(self, item: Item) -> tuple[int, ...]:
        return self.seed, item.epoch, item.index

    def _window(self, row: dict[str, Any], item: Item) -> range:
        bucket = self.buckets[item.bucket]
        if self.fixed:
            return range(0, (bucket.frames - 1) * bucket.strides[0] + 1, bucket.strides[0])
        return bucket.window(row["frames"], *self._key(item))

    def _load(self, row: dict[str, Any], item: Item, window: range) -> Loaded:
        """Read a sample, and all of its frames where they fit into the cache: the next window is another one."""
        numbers, bucket = window if self.fixed else range(row["frames"]), self.buckets[item.bucket]
        size = row["size"] + len(numbers) * bucket.height * bucket.width * 3 * ("video" in self.deliver)
        keep = size <= self.room
        loaded = self._read(row, bucket, numbers if keep else window)
        if keep:
            self.room -= size
            self.cache[item.bucket, item.index] = loaded
        return loaded

    def _read(self, row: dict[str, Any], bucket: Bucket, numbers: range) -> Loaded:
        names = [MEMBERS[name] for name in self.deliver]
        members = read_sample(self.manifest.root, row, {"txt", "json", *names})
        where = f"{self.manifest.root / row['shard']}: {row['key']}"
        if missing := set(names) - members.keys():
            raise ManifestError(f"{where}: found no {min(missing)}, expected one for deliver={list(self.deliver)}")
        frames, arrays = None, {}
        if "video" in self.deliver:
            backend = backend_for(row["width"])
            try:
                frames = resize(decode(members["mp4"], numbers, backend), bucket.height, bucket.width)
            except DecodeError as error:
                raise DecodeError(f"{where}.mp4: {error}") from error
        if "latent" in self.deliver:
            arrays["latent"] = read_latent(members["latent.npy"], where)
        if "text" in self.deliver:
            arrays["text"] = read_text(members["text.npy"], where)
        truth = read_notes(members).get("truth")
        return Loaded(frames, numbers, read_captions(members) or [""], truth, arrays)


class Datasets(Dataset):
    """The clips of several datasets: an item names its own."""

    def __init__(self, clips: Sequence[Clips]) -> None:
        self.clips = list(clips)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        return self.clips[item.dataset][item]


def truth_window(truth: dict[str, Any] | None, window: range) -> dict[str, Any] | None:
    """Return the truth of the frames in the window: what is a series over frames is cut, fps follows the stride."""
    if truth is None:
        return None
    frames = {name: np.asarray(truth[name])[window].tolist() for name in ("position", "velocity") if name in truth}
    return {**truth, **frames, "fps": truth["fps"] / window.step}


class GlobalBatches(Sampler[list[Item]]):
    """One rank's micro-batches of an endless order, from a step on; `start` may be a function that tells the step.

    A function is asked again at each iteration: an epoch cut short by the trainer must not begin from the old place.
    `clips` are those of the datasets of the mixture.
    """

    def __init__(
        self,
        mixture: Mixture,
        clips: Sequence[Clips],
        accumulate: int = 1,
        mesh: Mesh = ALONE,
        start: int | Callable[[], int] = 0,
    ) -> None:
        check_batch_sizes(mixture.batch_sizes, accumulate, mesh)
        self.mixture, self.clips, self.accumulate, self.mesh, self.start = mixture, clips, accumulate, mesh, start
        # By this name Lightning's DeepSpeed strategy asks for it.
        self.batch_size = max(mixture.batch_sizes) // (accumulate * mesh.data_world)

    def __iter__(self) -> Iterator[list[Item]]:
        step = self.start() if callable(self.start) else self.start
        while True:
            for micro in range(self.accumulate):
                yield self.batch(step, micro)
            step += 1

    def batch(self, step: int, micro: int) -> list[Item]:
        """Return what this rank takes in its `micro`-th micro-batch of a step."""
        batch = self.mixture.batch(step, micro, self.accumulate, self.mesh)
        bucket, items = self.mixture.buckets.index(batch.bucket), []
        for place, dataset, epoch, *sample in zip(*(column.tolist() for column in batch[2:]), strict=True):
            items.append(Item(step, place, epoch, self.clips[dataset].index(*sample), bucket, dataset))
        return items


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples into a batch: video uint8 `b c t h w`, latent `b c t h w`, text `b l d` with text_mask `b l`."""
    first, batch = samples[0], {"step": samples[0]["step"]}
    for name in ("caption", "key", "truth"):
        if name in first:
            batch[name] = [sample[name] for sample in samples]
    batch["fps"] = torch.tensor([sample["fps"] for sample in samples], dtype=torch.float32)
    batch["position"] = torch.tensor([sample["position"] for sample in samples], dtype=torch.int64)
    if "video" in first:
        video = torch.from_numpy(np.stack([sample["video"] for sample in samples]))
        batch["video"] = video.permute(0, 4, 1, 2, 3).contiguous()
    if "latent" in first:
        batch["latent"] = torch.stack([sample["latent"] for sample in samples])
    if "text" in first:
        batch["text"], batch["text_mask"] = pad_text([sample["text"] for sample in samples])
    return batch
