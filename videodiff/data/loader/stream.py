"""From the order to batches: what is read is decided by integers alone, never by timing or workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from videodiff.codec.cached import pad_text
from videodiff.data.loader.clips import Clips, Reader, Task
from videodiff.data.loader.quarantine import Quarantine
from videodiff.data.loader.workers import Read, Workers, read_here
from videodiff.data.order.arithmetic import ALONE, Mesh, check_batch_sizes
from videodiff.data.order.mixture import Batch, Curriculum, Mixture
from videodiff.data.storage.cache import CachedFolder


class Item(NamedTuple):
    """One place in a batch: optimizer step, position in the global batch, and which row in which bucket it holds."""

    step: int
    position: int
    epoch: int
    row: int
    bucket: int = 0
    dataset: int = 0


class GlobalBatches:
    """One rank's micro-batches of an endless order, from a step on; `start` may be a function that tells the step.

    A function is asked again at each iteration: an epoch cut short by the trainer must not begin from the old place.
    `clips`: the clips of each dataset of the mixture; with a curriculum, of each dataset of every stage.
    """

    def __init__(
        self,
        mixture: Mixture | Curriculum,
        clips: Sequence[Clips],
        accumulate: int = 1,
        mesh: Mesh = ALONE,
        start: int | Callable[[], int] = 0,
    ) -> None:
        check_batch_sizes(mixture.batch_sizes, accumulate, mesh)
        self.mixture, self.clips, self.accumulate, self.mesh, self.start = mixture, clips, accumulate, mesh, start

    def __iter__(self) -> Iterator[list[Item]]:
        step = self.start() if callable(self.start) else self.start
        while True:
            for micro in range(self.accumulate):
                yield self.batch(step, micro)
            step += 1

    def batch(self, step: int, micro: int) -> list[Item]:
        """Return what this rank takes in its `micro`-th micro-batch of a step."""
        return self._items(self.mixture.batch(step, micro, self.accumulate, self.mesh))

    def stand_in(self, step: int, position: int, attempt: int) -> Item:
        """Return what takes a place instead of something that cannot be read."""
        return self._items(self.mixture.stand_in(step, position, attempt))[0]

    def _items(self, batch: Batch) -> list[Item]:
        items = []
        for place, dataset, epoch, *sample in zip(*(column.tolist() for column in batch[2:]), strict=True):
            clips = self.clips[dataset]
            bucket = clips.buckets.index(batch.bucket)
            items.append(Item(batch.step, place, epoch, clips.row(*sample), bucket, dataset))
        return items


class Loader:
    """Batches for the trainer: the clips of `batches`, read in this process or, with `workers`, by them.

    What cannot be read goes into the quarantine and is replaced, see `Workers`; `batches` name the stand-ins.
    """

    def __init__(
        self,
        batches: GlobalBatches,
        reader: Reader,
        quarantine: Quarantine,
        workers: Callable[[], Workers] | None = None,
    ) -> None:
        self.batch_sampler = batches
        self.reader, self.quarantine, self.workers, self.asked = reader, quarantine, workers, {}
        self.remote = any(isinstance(clips.manifest.root, CachedFolder) for clips in batches.clips)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        asked = map(self.tasks, self.batch_sampler)
        if self.workers is None:
            reads = read_here(self.reader, asked, self.stand_in, self.quarantine)
        else:
            reads = self.workers().batches(asked)
        return map(collate, reads)

    def tasks(self, items: Sequence[Item]) -> list[Task]:
        """Return what is to be read for a micro-batch."""
        if self.remote:
            self.look_ahead(items[0])
        return [self.task(item) for item in items]

    def look_ahead(self, item: Item) -> None:
        """Fetch the next window's shards of remote datasets while the shards of the present window are read."""
        for clips, shards in zip(self.batch_sampler.clips, self.batch_sampler.mixture.upcoming(item.step), strict=True):
            root, place = clips.manifest.root, (item.bucket, clips.number)
            if len(shards) and isinstance(root, CachedFolder) and self.asked.get(place) != shards.tolist():
                self.asked[place] = shards.tolist()
                root.prefetch([clips.manifest.shards[shard]["name"] for shard in self.asked[place]])

    def task(self, item: Item) -> Task:
        """Return what is to be read for an item."""
        clips = self.batch_sampler.clips[item.dataset]
        return clips.task(item.row, item.bucket, item.epoch, (item.step, item.position))

    def stand_in(self, asked: Task, attempt: int) -> Task:
        """Return another clip for one that cannot be read."""
        return self.task(self.batch_sampler.stand_in(*asked.order, attempt))


def collate(read: Read) -> dict[str, Any]:
    """Return a batch: video uint8 `b c t h w`, latent `b c t h w`, text `b l d` with text_mask `b l`.

    Where there is a GPU the memory is pinned, so that copies to the device need not be waited for.
    """
    samples, orders = read.rest, [task.order for task in read.tasks]
    batch: dict[str, Any] = {"step": orders[0][0], "position": torch.tensor([position for _, position in orders])}
    for name in ("caption", "key", "truth"):
        if name in samples[0]:
            batch[name] = [sample[name] for sample in samples]
    batch["fps"] = torch.tensor([sample["fps"] for sample in samples], dtype=torch.float32)
    if read.frames.size:
        # The axes change places, the bytes do not: that is left to the device.
        batch["video"] = torch.from_numpy(read.frames).permute(0, 4, 1, 2, 3)
    if "latent" in samples[0]:
        batch["latent"] = torch.from_numpy(np.stack([sample["latent"] for sample in samples]))
    if "text" in samples[0]:
        batch["text"], batch["text_mask"] = pad_text([torch.from_numpy(sample["text"]) for sample in samples])
    if torch.cuda.is_available():
        batch |= {name: value.pin_memory() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return batch
