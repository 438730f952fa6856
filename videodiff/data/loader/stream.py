"""From the order to batches: integers alone decide what is read, never timing or workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
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
    """One clip of a batch: its optimizer step and position in the global batch, and its row and bucket."""

    step: int
    position: int
    epoch: int
    row: int
    bucket: int = 0
    dataset: int = 0


class GlobalBatches:
    """One rank's micro-batches of an endless order, from step `start` on; `start` may be a function.

    The function is called at each new iteration: after the trainer cut an epoch short, the start has moved.
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
        """Return the items of this rank in micro-batch `micro` of a step."""
        return self._items(self.mixture.batch(step, micro, self.accumulate, self.mesh))

    def stand_in(self, step: int, position: int, attempt: int) -> Item:
        """Return a replacement for an unreadable clip at this step and position."""
        return self._items(self.mixture.stand_in(step, position, attempt))[0]

    def _items(self, batch: Batch) -> list[Item]:
        items = []
        for place, dataset, epoch, *sample in zip(*(column.tolist() for column in batch[2:]), strict=True):
            clips = self.clips[dataset]
            bucket = clips.buckets.index(batch.bucket)
            items.append(Item(batch.step, place, epoch, clips.row(*sample), bucket, dataset))
        return items


class Loader:
    """Batches for the trainer: the clips of `batches`, read by `workers`, or in this process without them.

    Unreadable samples go into the quarantine and are replaced, see `Workers`; `batches` choose the replacements.
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
        return (collate(read, self.reader.deliver) for read in reads)

    def tasks(self, items: Sequence[Item]) -> list[Task]:
        """Return the tasks of a micro-batch."""
        if self.remote:
            self.look_ahead(items[0])
        return [self.task(item) for item in items]

    def look_ahead(self, item: Item) -> None:
        """Fetch the shards of the next shuffle window of remote datasets while the present window is read."""
        for clips, shards in zip(self.batch_sampler.clips, self.batch_sampler.mixture.upcoming(item.step), strict=True):
            root, place = clips.manifest.root, (item.bucket, clips.dataset)
            if len(shards) and isinstance(root, CachedFolder) and self.asked.get(place) != shards.tolist():
                self.asked[place] = shards.tolist()
                root.prefetch([clips.manifest.shards[shard]["name"] for shard in self.asked[place]])

    def task(self, item: Item) -> Task:
        """Return the task of an item."""
        clips = self.batch_sampler.clips[item.dataset]
        return clips.task(item.row, item.bucket, item.epoch, (item.step, item.position))

    def stand_in(self, asked: Task, attempt: int) -> Task:
        """Return a replacement for a task that cannot be read."""
        return self.task(self.batch_sampler.stand_in(*asked.order, attempt))


class HandedOn:
    """What a rank has to read whose neighbour reads for it: nothing, without end."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield {}


def collate(read: Read, parts: Collection[str] = ("video",)) -> dict[str, Any]:
    """Return a batch: video uint8 `b c t h w`, latent `b c t h w`, text `b l d` with text_mask `b l`.

    `parts`: what the batch has beside caption, key and fps: what the reader delivers, and truth for fixed clips.
    With a GPU the memory is pinned, so that copies to the device run asynchronously.
    """
    samples, orders = read.rest, [task.order for task in read.tasks]
    batch: dict[str, Any] = {"step": orders[0][0], "position": torch.tensor([position for _, position in orders])}
    for name in ("caption", "key", *(["truth"] if "truth" in parts else [])):
        batch[name] = [sample[name] for sample in samples]
    batch["fps"] = torch.tensor([sample["fps"] for sample in samples], dtype=torch.float32)
    if "video" in parts:
        # A view: the axes are permuted here, the device moves the bytes.
        batch["video"] = torch.from_numpy(read.frames).permute(0, 4, 1, 2, 3)
    if "latent" in parts:
        batch["latent"] = torch.from_numpy(np.stack([sample["latent"] for sample in samples]))
    if "text" in parts:
        batch["text"], batch["text_mask"] = pad_text([torch.from_numpy(sample["text"]) for sample in samples])
    if torch.cuda.is_available():
        batch |= {name: value.pin_memory() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return batch
