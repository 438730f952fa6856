"""The validation clips: few, always the same, each with its first window and caption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from torch import nn

from videodiff.data.loader.clips import Clips, Reader, Task
from videodiff.data.loader.quarantine import Quarantine
from videodiff.data.loader.settings import Reading
from videodiff.data.loader.stream import collate
from videodiff.data.loader.wording import fit_captions, read_captions_of
from videodiff.data.loader.workers import Read, Workers, read_here
from videodiff.data.order.arithmetic import Mesh

StandIn = Callable[[Task, int], Task]


class Validation:
    """The first `count` clips, for measurement only: their captions are fitted to the text encoder."""

    def __init__(self, clips: Clips, reading: Reading, count: int) -> None:
        self.clips, self.reading, self.count = clips, reading, count
        self.fitted: Callable[[Sequence[str]], tuple[list[str], str]] = lambda captions: (list(captions), "")

    def fit(self, text: nn.Module | None) -> list[str]:
        """Fit captions to an encoder (None if they come encoded) from now on; return remarks for the user."""
        said = [*self.clips.said]
        if text is not None:
            self.fitted = partial(fit_captions, text=text)
            found = read_captions_of(self.clips.manifest, list(islice(self.clips.fitting(), self.count)))
            _, left_out = self.fitted([captions[0].text if captions else "" for _, captions in found])
            said += [left_out] if left_out else []
        return said

    def batches(self, mesh: Mesh, size: int) -> list[dict[str, Any]]:
        """Return the clips in batches of `size`: this rank's share if they divide over the ranks, else all."""
        rows = list(islice(self.clips.fitting(), self.count))
        tasks = [self.clips.task(rows[place], order=(0, place)) for place in share_of(len(rows), mesh)]
        asked = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        batches = [
            collate(read, (*self.reading.deliver, "truth"))
            for read in self._read(asked, no_stand_in, Quarantine(budget=0))
        ]
        return [batch | {"caption": self.fitted(batch["caption"])[0]} for batch in batches]

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Return the first readable clips as the reader gives them, with their frames as `video`."""
        rows, lost = self.clips.fitting(), Quarantine(budget=math.inf)
        tasks = [self.clips.task(row, order=(0, place)) for place, row in enumerate(islice(rows, count))]

        def stand_in(asked: Task, attempt: int) -> Task:
            if (row := next(rows, None)) is None:
                root, first = self.clips.manifest.root, next(iter(lost.losses.values()), None)
                why = f"; the first that cannot: {first.reason}" if first else ""
                raise ValueError(f"{root}: found too few clips that can be read, expected {count}{why}")
            return self.clips.task(row, order=asked.order)

        found = []
        for read in self._read([tasks], stand_in, lost):
            for frames, sample in zip(read.frames, read.rest, strict=True):
                found.append({**sample, "video": frames.copy()} if frames.size else sample)
        captions, _ = self.fitted([sample["caption"] for sample in found])
        return [{**sample, "caption": caption} for sample, caption in zip(found, captions, strict=True)]

    def _read(self, asked: Sequence[Sequence[Task]], stand_in: StandIn, lost: Quarantine) -> Iterator[Read]:
        """Read a few batches; QuarantineError if more clips fail than `lost` may hold."""
        reader = Reader.of({self.clips.dataset: self.clips.manifest.root}, self.reading, cache=False)
        if not self.reading.num_workers:
            yield from read_here(reader, asked, stand_in, lost)
            return
        largest = max(len(asked[0]) * math.prod(asked[0][0].shape), 1)
        count = min(self.reading.num_workers, len(asked[0]))
        with Workers(reader, count, largest, stand_in, lost, self.reading.timeout) as workers:
            yield from workers.batches(asked)


def share_of(count: int, mesh: Mesh) -> range:
    """Return the indices of a rank's clips among `count`: its share if they divide over the ranks, else all."""
    rank, world = mesh.data_rank, mesh.data_world
    return range(count) if count % world else range(rank * count // world, (rank + 1) * count // world)


def no_stand_in(asked: Task, attempt: int) -> Task:
    """Raise: validation needs every clip, or its values could not be compared over time."""
    raise ValueError(f"{asked.sample.shard}: {asked.sample.key}: cannot be read, expected every validation clip")
