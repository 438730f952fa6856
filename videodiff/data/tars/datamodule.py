"""The data of a run for Lightning, from tars without a manifest: webdataset's stream, decoded by our own workers.

Readers are workers of a DataLoader and only read bytes. Decoding happens in our own processes, which may hang or crash
and are killed alone. The stream never ends and all ranks use the same shape in each step, so no rank waits for another.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from videodiff.data.loader.clips import Clips
from videodiff.data.loader.datamodule import BatchModule
from videodiff.data.loader.quarantine import Quarantine, SampleId
from videodiff.data.loader.settings import Batches, Reading, Shapes, built, signature_of
from videodiff.data.loader.stream import HandedOn, collate
from videodiff.data.loader.trained import Trained, mix, usual
from videodiff.data.loader.validation import Validation, share_of
from videodiff.data.loader.wording import fit_captions
from videodiff.data.loader.workers import Read
from videodiff.data.order.arithmetic import Mesh, check_batch_sizes, deal, positions
from videodiff.data.order.curriculum import read_buckets
from videodiff.data.processes.child import forkserver
from videodiff.data.samples.manifest import Manifest
from videodiff.data.tars.clips import (
    UNREADABLE,
    Decode,
    Look,
    Refusals,
    TarTask,
    first_clips,
    keep_faults,
    look,
    read_tasks,
    tasks_of,
    view,
    why,
)
from videodiff.data.tars.settings import NEED_A_MANIFEST, RECORDS, TarHeld, Tars
from videodiff.data.tars.source import End, Fault, Item, Source, find_tars, read_tars, shown
from videodiff.words import count_text

# Samples that are examined before the first step, and the number of tars that they come from.
LOOKED_AT, LOOKED_IN = 128, 8
# The run ends if this many samples do not fill the micro-batch that is due.
STARVED = 20_000
# The most micro-batches of a shape that wait for their step; further clips are skipped.
WAITING = 4
PARTS = 1000


class Progress:
    """The tars of each epoch that have been read completely: a resumed run leaves them out."""

    def __init__(self, done: Mapping[int, Iterable[int]] | None = None) -> None:
        self.done = {epoch: set(tars) for epoch, tars in (done or {}).items()}
        self.taken: Counter[tuple[int, int]] = Counter()
        self.totals: dict[tuple[int, int], int] = {}

    def take(self, epoch: int, tar: int) -> None:
        """Count a sample that was trained on, or never will be."""
        self.taken[epoch, tar] += 1
        self._settle(epoch, tar)

    def end(self, end: End) -> None:
        """Record the number of samples of a tar."""
        self.totals[end.epoch, end.tar] = end.samples
        self._settle(end.epoch, end.tar)

    def _settle(self, epoch: int, tar: int) -> None:
        if self.totals.get((epoch, tar)) == self.taken[epoch, tar]:
            self.done.setdefault(epoch, set()).add(tar)
            self.totals.pop((epoch, tar), None)

    def merge(self, others: Iterable[Mapping[int, Iterable[int]]], tars: int) -> dict[int, list[int]]:
        """Return the finished tars of all ranks, by epoch, for the epochs that are not finished."""
        for other in others:
            for epoch, done in other.items():
                self.done.setdefault(epoch, set()).update(done)
        epochs = itertools.count(min(self.done, default=0))
        first = next(epoch for epoch in epochs if len(self.done.get(epoch, ())) < tars)
        self.done = {epoch: done for epoch, done in self.done.items() if epoch >= first} or {first: set()}
        return {epoch: sorted(done) for epoch, done in self.done.items()}


class TarDataModule(BatchModule):
    """Deliver batches of clips from tars without a manifest, each read from start to end: a stream without an index.

    Shapes, batches, reading and validation mean the same as in `ClipDataModule`. The share of steps of each bucket
    follows from samples that are examined at the start. With 0 workers this process reads and decodes. The budget of
    the quarantine counts samples and tars.

    A resumed run skips the tars of the epoch that were read completely. Samples of partly read tars may come again.
    """

    def __init__(self, settings: Tars, shapes: Shapes, batches: Batches, reading: Reading, held: TarHeld) -> None:
        super().__init__()
        self.settings, self.shapes, self.batches, self.reading = settings, shapes, batches, reading
        self.tars, self.validation_tars = find_tars(settings.urls, settings.pipes), held.tars(settings.pipes)
        self.validation_root, self.validation_clips = held.validation_root, held.validation_clips
        self.buckets, given = read_buckets("data.buckets", shapes.rules[0]["buckets"], shapes.stride)
        self.batch_sizes = [size or batches.global_batch for size in given]
        self.decode = Decode(self.buckets, shapes.any_size, reading.mix, reading.decoder)
        self.quarantine, self.progress, self.passed = (
            Quarantine(reading.quarantine, reading.budget),
            Progress(),
            Counter(),
        )
        self.given: deque[tuple[int, list[TarTask]]] = deque()
        self.resumed, self.running, self.fit_text = False, None, None

    @cached_property
    def looks(self) -> list[Look]:
        """Facts about some samples of the training tars; ValueError if none can be used."""
        indices = sorted({round(index) for index in np.linspace(0, len(self.tars) - 1, LOOKED_IN)})
        each, faults = -(-LOOKED_AT // len(indices)), []

        def tasks() -> Iterator[TarTask]:
            for index in indices:
                yield from tasks_of(keep_faults(read_tars(self.tars, [index]), faults), self.tars, 1, each)

        lost = Quarantine(budget=math.inf)
        found = [rest for _, rest, _ in read_tasks(tasks(), look, 1, self.reading, lost) if isinstance(rest, Look)]
        if not found:
            raise ValueError(
                f"data.urls: found no usable sample in {count_text(len(self.tars), 'tar')}{why(lost, faults)}"
            )
        return found

    @cached_property
    def trained(self) -> list[Trained]:
        """The shapes of training with their shares and frame rates, estimated from the examined samples."""
        clips, rates = [0.0] * len(self.buckets), [Counter() for _ in self.buckets]
        for found in self.looks:
            left, fitting = 1.0, self.decode.fitting(found.info)
            for index in fitting:
                bucket = self.buckets[index]
                share = left if index == fitting[-1] else left * bucket.keep
                left, clips[index] = left - share, clips[index] + share
                usable = [stride for stride in bucket.strides if (bucket.frames - 1) * stride < found.info.frames]
                for stride in usable[: 1 if self.reading.fixed else None]:
                    rates[index][round(found.info.fps / stride, 3)] += share / len(usable)
        if not any(clips):
            shapes = " or ".join(f"{bucket.span} for {bucket}" for bucket in self.buckets)
            first = self.looks[0].info
            raise ValueError(
                f"data.urls: found none of {len(self.looks)} samples with the frames for a clip, expected {shapes}; "
                f"the first one has {count_text(first.frames, 'frame')} of {first.height} x {first.width} pixels"
            )
        return [
            Trained(0, b.frames, b.height, b.width, b.strides, own / sum(clips), mix([counted], [1.0]))
            for b, own, counted in zip(self.buckets, clips, rates, strict=True)
        ]

    def bucket_of(self, step: int) -> int:
        """Return the index of the bucket of a step, the same on all ranks."""
        steps = [one.share / size for one, size in zip(self.trained, self.batch_sizes, strict=True)]
        return int(deal([step], [math.ceil(PARTS * share / sum(steps)) for share in steps])[0][0])

    def check(self, world: int = 1) -> None:
        """Raise a one-line error if no sample can be used, or a batch does not divide over `world` processes."""
        check_batch_sizes(self.batch_sizes, self.accumulate(world), self.mesh(world))
        _ = self.trained, self.held

    def check_encoders(self, codec: nn.Module, text: nn.Module) -> None:
        """Accept any encoders, because these tars hold no latents and no encoded text."""

    def check_captions(self, text: nn.Module) -> list[str]:
        """Return remarks on samples and captions; captions are not known beforehand, so words are cut or left out."""
        count, said = len(self.looks), []
        if without := sum(not found.captions for found in self.looks):
            said.append(f"data.urls: {without} of {count} examined samples have no caption")
        if short := sum(not self.decode.fitting(found.info) for found in self.looks):
            said.append(f"data.urls: {short} of {count} examined samples fit no shape; such samples are skipped")
        if len(self.buckets) > 1:
            parts = (f"{b} {one.share:.0%}" for b, one in zip(self.buckets, self.trained, strict=True))
            said.append(f"data.urls: shares of the shapes by {count} examined samples: {', '.join(parts)}")
        if text.unit == "words":
            # Otherwise training would end at the first step with such a caption.
            text.accept_all()
            said.append(f"data.urls: captions lose words beyond {text.max_words - 1}, and unknown ones")
        self.fit_text = partial(fit_captions, text=text)
        if self.held is not None:
            said += [f"{self.validation_root}: {line}" for line in self.held.fit(text)]
        return said

    def setup(self, stage: str) -> None:
        """Give all ranks the shapes of rank 0: a command may give each rank other samples."""
        if torch.distributed.is_initialized():
            found = [self.trained]
            torch.distributed.broadcast_object_list(found, src=0)
            self.trained = found[0]

    def train_dataloader(self) -> Any:
        """Return this rank's endless stream of micro-batches from `step` on."""
        mesh = self._mesh()
        accumulate = self.accumulate(mesh.world)
        if self.trainer is not None and self.trainer.accumulate_grad_batches != accumulate:
            raise ValueError(
                f"trainer.accumulate_grad_batches: found {self.trainer.accumulate_grad_batches}, expected {accumulate}"
            )
        return TarLoader(self, mesh, accumulate) if mesh.reads else HandedOn()

    def stream(self, mesh: Mesh, accumulate: int) -> Iterator[dict[str, Any]]:
        """Yield this rank's micro-batches."""
        waiting: list[deque[tuple[TarTask, dict[str, Any], np.ndarray]]] = [deque() for _ in self.buckets]
        sizes = [size // (accumulate * mesh.data_world) for size in self.batch_sizes]
        self.say_resumed(mesh)
        with contextlib.closing(self.clips(mesh, max(sizes))) as clips:
            for step in itertools.count(self.step):
                bucket = self.bucket_of(step)
                for micro in range(accumulate):
                    self.fill(waiting, bucket, sizes, clips)
                    chosen = [waiting[bucket].popleft() for _ in range(sizes[bucket])]
                    order = positions(self.batch_sizes[bucket], micro, accumulate, mesh).tolist()
                    yield self.batch(chosen, bucket, [(step, place) for place in order])
                    del chosen

    def fill(self, waiting: Sequence[deque], bucket: int, sizes: Sequence[int], clips: Iterator[Any]) -> None:
        """Read clips until a micro-batch of a bucket is complete."""
        for count in itertools.count():
            if len(waiting[bucket]) >= sizes[bucket]:
                return
            if count == STARVED:
                raise ValueError(
                    f"data.urls: found no clip for {self.buckets[bucket]} in {STARVED:,} samples, expected some, as "
                    f"among the samples examined at the start"
                )
            clip = next(clips)
            own = clip[1]["bucket"]
            if len(waiting[own]) < WAITING * sizes[own]:
                waiting[own].append(clip)
            else:
                self.passed["of a shape with too many"] += 1
                self.note_taken(clip[0])

    def batch(self, chosen: list[Any], bucket: int, orders: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Collate clips into a micro-batch."""
        frames = np.stack([view(memory, self.buckets[bucket]) for _, _, memory in chosen])
        rest = [{**rest, "key": task.sample.key} for task, rest, _ in chosen]
        # A clip counts as trained on when its step is over: the trainer fetches batches ahead.
        self.given.append((orders[0][0], [task for task, _, _ in chosen]))
        self.settle()
        tasks = [task._replace(order=order) for (task, _, _), order in zip(chosen, orders, strict=True)]
        return collate(Read(frames, rest, tasks))

    def clips(self, mesh: Mesh, size: int) -> Iterator[tuple[TarTask, dict[str, Any], np.ndarray]]:
        """Yield this rank's clips that fit a bucket, in the order of the stream."""
        start = self.step
        done = tuple((epoch, frozenset(tars)) for epoch, tars in self.progress.done.items())
        first, ranks = min(self.progress.done, default=0), (mesh.data_rank, mesh.data_world)
        mixing = self.settings.shuffle, self.settings.resampled
        source = Source(tuple(self.tars), self.batches.seed, *mixing, *ranks, first, done, start)
        readers = self.settings.readers if self.reading.num_workers else 0
        items = source.items(readers, self.settings.wait, forkserver(Source.__module__))
        seed = None if self.reading.fixed else self.batches.seed
        tasks = tasks_of(self.samples(items, start), self.tars, self.decode.bytes, start=start, seed=seed)
        reads = read_tasks(tasks, self.decode, self.decode.bytes, self.reading, self.quarantine, 2 * size)
        refusals = Refusals()
        for task, rest, memory in reads:
            if "bucket" in rest:
                refusals.accept()
                yield task, rest, memory
                continue
            kind = rest.get("misfit", UNREADABLE)
            self.passed[kind] += 1
            self.note_taken(task)
            if line := refusals.refuse(kind, None if self.settings.resampled else task.order[2], self.quarantine):
                print(line, file=sys.stderr)

    def settle(self) -> None:
        """Count the clips of finished steps as trained on."""
        while self.given and self.given[0][0] < self.step:
            for task in self.given.popleft()[1]:
                self.note_taken(task)

    def note_taken(self, task: TarTask) -> None:
        """Count a sample that was trained on, or never will be."""
        if not self.settings.resampled:
            self.progress.take(*task.order[2:])

    def samples(self, items: Iterable[Item], start: int) -> Iterator[Item]:
        """Yield the samples of the stream; count or report the faults and ends between them."""
        for count, item in enumerate(items):
            if isinstance(item, End):
                if not self.settings.resampled:
                    self.progress.end(item)
            elif isinstance(item, Fault) and item.kind is not None:
                counted = f"members: {item.kind}"
                self.passed[counted] += 1
                if self.passed[counted] == 1:
                    print(f"data.urls: {item.tar}: {item.key}: {item.reason}; others are counted", file=sys.stderr)
            elif isinstance(item, Fault):
                self.quarantine.add(SampleId(item.tar, item.key, -1), (start, count), item.reason)
            else:
                yield item

    @cached_property
    def held(self) -> Validation | None:
        """The validation clips of a dataset with a manifest."""
        if self.validation_root is None:
            return None
        manifest, shape = Manifest.load(self.validation_root), usual(self.trained)
        bucket = replace(shape.bucket, strides=shape.strides[:1])
        try:
            clips = Clips(manifest, [bucket], fixed=True, skip=True, any_size=True)
        except ValueError as error:
            raise ValueError(f"data.validation_root: {error}") from error
        return Validation(clips, self.reading, self.validation_clips)

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Return the first clips of the validation set, or else of the training tars, the same on every rank."""
        if self.held is not None:
            return self.held.examples(count)
        found = self._first_clips(self.validation_tars or self.tars, count)
        return [clip | {"caption": self._fit([clip["caption"]])[0]} for clip in found]

    def _first_clips(self, tars: Sequence[str], count: int) -> list[dict[str, Any]]:
        """Return the first clips of tars in the usual shape; unreadable samples are skipped."""
        return first_clips(tars, usual(self.trained).bucket, count, self.reading, Quarantine(budget=math.inf))

    def _fit(self, captions: list[str]) -> list[str]:
        """Return captions without the words that the text encoder does not know."""
        return captions if self.fit_text is None else self.fit_text(captions)[0]

    @cached_property
    def validation_batches(self) -> list[dict[str, Any]]:
        """The validation clips; they stay decoded, as they are few and never change."""
        mesh = self._mesh()
        size = self.at_once(mesh.world)
        if self.held is not None:
            return self.held.batches(mesh, size)
        if self.validation_tars is None:
            return []
        found, batches = self._first_clips(self.validation_tars, self.validation_clips), []
        share = share_of(len(found), mesh)
        for first in range(share.start, share.stop, size):
            own = range(first, min(first + size, share.stop))
            frames = np.stack([found[place]["video"] for place in own])
            tasks = [found[place]["task"]._replace(order=(0, place)) for place in own]
            batch = collate(Read(frames, [found[place] for place in own], tasks))
            batches.append(batch | {"caption": self._fit(batch["caption"])})
        return batches

    def teardown(self, stage: str) -> None:
        """End the readers and the workers, and print how many samples were skipped."""
        if self.running is not None:
            self.running.close()
            self.running = None
        if self.passed:
            counts = ", ".join(f"{kind} {count:,}" for kind, count in self.passed.most_common())
            rank = f" (rank {self._mesh().rank})" if self._mesh().world > 1 else ""
            print(f"data.urls{rank}: samples skipped: {counts}", file=sys.stderr)
            self.passed.clear()

    def say_resumed(self, mesh: Mesh) -> None:
        """Print once that a stream does not resume at the exact sample."""
        if not self.resumed or mesh.rank:
            return
        self.resumed = False
        epoch, left_out = min(self.progress.done, default=0), sum(map(len, self.progress.done.values()))
        if self.settings.resampled:
            what = "tars are drawn anew, any sample may come again"
        elif left_out:
            what = (
                f"from epoch {epoch} on, {left_out:,} tars that were read completely are left out (an epoch has "
                f"{len(self.tars):,}), samples of partly read tars may come again"
            )
        else:
            what = f"no tar of epoch {epoch} was read completely, so any of its samples may come again"
        print(f"data.urls: continues at step {self.step:,}, but not at the exact sample: {what}", file=sys.stderr)

    @property
    def fingerprint(self) -> str:
        """A digest of the list of tars; secrets do not enter it."""
        return hashlib.sha256(json.dumps(list(map(shown, self.tars))).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the quarantine of all ranks, and the tars that they have read completely, by epoch."""
        self.settle()
        mine = self.quarantine.state_dict(), {epoch: sorted(tars) for epoch, tars in self.progress.done.items()}
        ranks = [mine]
        if torch.distributed.is_initialized():
            ranks *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, mine)
        lost = Quarantine()
        for losses, _ in ranks:
            lost.load_state_dict(losses)
        done = self.progress.merge((done for _, done in ranks), len(self.tars))
        state = {"step": self.step, "quarantine": lost.state_dict(), "tars": self.fingerprint}
        return state | {"done": [[epoch, tars] for epoch, tars in done.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint; if the list of tars has changed, no tar is left out."""
        self.loaded_step, self.resumed = int(state["step"]), True
        self.quarantine.load_state_dict(state["quarantine"])
        same = state["tars"] == self.fingerprint
        first = max((epoch for epoch, _ in state["done"]), default=-1) + 1
        self.progress = Progress({int(epoch): tars for epoch, tars in state["done"]} if same else {first: ()})


class TarLoader:
    """This rank's endless micro-batches for the trainer."""

    def __init__(self, data: TarDataModule, mesh: Mesh, accumulate: int) -> None:
        self.data, self.mesh, self.accumulate = data, mesh, accumulate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.data.running is not None:
            self.data.running.close()
        self.data.running = self.data.stream(self.mesh, self.accumulate)
        return self.data.running


def tar_data(**settings: Any) -> TarDataModule:
    """Return the data module for the keys of `conf/data/webdataset.yaml`; each key is a field of one of `RECORDS`."""
    return TarDataModule(*built(RECORDS, settings, NEED_A_MANIFEST))


tar_data.__signature__ = signature_of(RECORDS, NEED_A_MANIFEST)
