"""The data of a run for Lightning: an endless training stream and a fixed validation set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from videodiff.data.loader.captions import check_origins
from videodiff.data.loader.checks import check_room, check_texts
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.loader.quarantine import Quarantine
from videodiff.data.loader.settings import Batches, Datasets, Held, Reading, Shapes, built, signature_of
from videodiff.data.loader.stream import GlobalBatches, HandedOn, Loader
from videodiff.data.loader.trained import Trained, trained_shapes, usual
from videodiff.data.loader.validation import Validation
from videodiff.data.loader.workers import LIFE, Pace, Workers
from videodiff.data.order.arithmetic import Mesh, micro_batches, resume, usual_batch
from videodiff.data.order.curriculum import order_of
from videodiff.data.order.mixture import Curriculum
from videodiff.data.samples.manifest import Manifest
from videodiff.data.storage.cache import CachedFolder


class BatchModule(lightning.LightningDataModule):
    """The base class of data modules; subclasses set `batches` and `batch_sizes`, the global batch of each bucket.

    `ordered`: which clip is in which batch is a function of the step, so that batches can be left out.
    """

    ordered = False
    batches: Batches
    batch_sizes: Sequence[int]
    loaded_step = 0
    # How many consecutive ranks share each clip.
    sequence = 1
    # Global batches of the order that no step was taken with, and how many more a checkpoint's successor leaves out.
    left_out, leave_out = 0, 0

    @property
    def step(self) -> int:
        """The next global batch of the order, counted by what training has consumed, not by what workers have read.

        It is the next optimizer step, plus the batches that were left out.
        """
        return self.loaded_step if self.trainer is None else self.trainer.global_step + self.left_out

    def accumulate(self, world: int) -> int:
        """Return the micro-batches per step of each of `world` processes; ValueError if they do not divide."""
        unit = "processes" if self.sequence == 1 else f"groups of {self.sequence} processes"
        shares, count = self.mesh(world).data_world, self.batches.count
        return micro_batches(self.batch_sizes, self.global_batch, self.batches.micro_batch, shares, unit, count)

    @property
    def global_batch(self) -> int:
        """The global batch that `data.micro_batch` is about; with `data.batch` the smallest one."""
        sizes = self.batch_sizes
        return min(sizes) if self.batches.count else usual_batch(self.batches.global_batch, sizes)

    def at_once(self, world: int) -> int:
        """Return how many clips of the usual batch each of `world` processes takes at once."""
        return self.global_batch // (self.accumulate(world) * self.mesh(world).data_world)

    def mesh(self, world: int, rank: int = 0) -> Mesh:
        """Return where a rank of so many processes stands."""
        return Mesh(rank, world, self.sequence)

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, index: int) -> dict[str, Any]:
        """Move a batch to the device, except its positions: the host needs them and would wait for the copy."""
        rest = {name: value for name, value in batch.items() if name != "position"}
        return super().transfer_batch_to_device(rest, device, index) | {"position": batch["position"]}

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Return the fixed clips: this rank's share if they divide over the ranks, else all of them.

        The ranks of a sequence group have the same ones.
        """
        return DataLoader(self.validation_batches, batch_size=None) if self.validation_batches else []

    def _mesh(self) -> Mesh:
        return Mesh() if self.trainer is None else self.mesh(self.trainer.world_size, self.trainer.global_rank)


class ClipDataModule(BatchModule):
    """Deliver batches of clips; `Reader` describes the cache and what is delivered, `Mixture` the order.

    The state is the optimizer step and the quarantine. It can be loaded with any number of processes, micro-batches
    and workers if seed, global batches and datasets are the same.
    """

    ordered = True

    def __init__(self, datasets: Datasets, shapes: Shapes, batches: Batches, reading: Reading, held: Held) -> None:
        super().__init__()
        self.datasets, self.shapes, self.batches, self.reading, self.held = datasets, shapes, batches, reading, held
        self.quarantine = Quarantine(reading.quarantine, reading.budget)
        self.stages = batches.planned(datasets, shapes)
        self.batch_sizes = [size for stage in self.stages for size in stage.batch_sizes]
        self.roots = datasets.roots

    @cached_property
    def manifests(self) -> list[Manifest]:
        """The manifests of the training datasets, opened at first use."""
        return [Manifest.load(root, self.datasets.cache) for root, _ in self.roots]

    @cached_property
    def training(self) -> list[Clips]:
        """The training clips of each dataset of the first stage, then of the next; each has a seed of its own."""
        how = {"fixed": self.reading.fixed, "skip": self.shapes.skip_short, "any_size": self.shapes.any_size}
        check_origins(self.reading.mix, [manifest.caption_origins for manifest in self.manifests])
        return [
            Clips(self.manifests[n], stage.buckets, stage.seed + n, n, deliver=tuple(self.reading.deliver), **how)
            for stage in self.stages
            for n in stage.datasets
        ]

    @cached_property
    def order(self) -> Curriculum:
        """The order of the training clips."""
        counts, often = [(clips.counts, clips.kinds) for clips in self.training], [repeat for _, repeat in self.roots]
        order = order_of(self.stages, counts, often, self.batches.window)
        if any(isinstance(manifest.root, CachedFolder) for manifest in self.manifests):
            for clips, shards in zip(self.training, order.open_shards(), strict=True):
                check_room(clips.manifest, shards)
        return order

    @cached_property
    def reader(self) -> Reader:
        """The reader of the training clips, used in this process or in a worker."""
        return Reader.of({n: manifest.root for n, manifest in enumerate(self.manifests)}, self.reading)

    @cached_property
    def workers(self) -> Workers:
        """The processes that read the training clips, started at first use."""
        batches = self._batches(self._mesh())
        shares = batches.accumulate * batches.mesh.data_world
        sizes = [pair for stage in self.stages for pair in zip(stage.batch_sizes, stage.buckets, strict=True)]
        largest = max(size // shares * shape.frames * shape.height * shape.width * 3 for size, shape in sizes)
        stand_in = Loader(batches, self.reader, self.quarantine).stand_in
        # Workers with a cache are not replaced by age: a new process would start with an empty cache.
        life = LIFE if not self.reading.cache_gib else math.inf
        how = {"timeout": self.reading.timeout, "pace": Pace(life=life)}
        return Workers(self.reader, self.reading.num_workers, largest, stand_in, self.quarantine, **how)

    @cached_property
    def validation(self) -> Validation | None:
        """The validation clips, in the usual shape; of several shapes the clips of the others are left out."""
        root = self.held.validation_root
        if root is None:
            return None
        how = {"skip": self.shapes.skip_short or len(self.trained) > 1, "any_size": True}
        manifest = Manifest.load(root, self.datasets.cache)
        try:
            bucket = usual(self.trained).bucket
            clips = Clips(manifest, [bucket], fixed=True, deliver=tuple(self.reading.deliver), **how)
        except ValueError as error:
            raise ValueError(f"data.validation_root: {error}") from error
        return Validation(clips, self.reading, self.held.validation_clips)

    @cached_property
    def trained(self) -> list[Trained]:
        """The shapes and frame rates of training."""
        return trained_shapes(self.stages, self.order, [clips.rates for clips in self.training])

    def check(self, world: int = 1) -> None:
        """Raise a one-line error if a dataset cannot be read, or a batch does not divide over `world` processes.

        Clips are not decoded here: workers find and replace the ones that cannot be decoded.
        """
        self._batches(self.mesh(world)), self.reader
        for clips in self._all_clips:
            if not self.reading.num_workers:
                Reader.of({clips.dataset: clips.manifest.root}, self.reading).alone(clips.first())

    @property
    def _all_clips(self) -> list[Clips]:
        return [*self.training, *([self.validation.clips] if self.validation else [])]

    def check_encoders(self, codec: nn.Module, text: nn.Module) -> None:
        """Raise if a dataset holds latents or text of another codec or text encoder."""
        for clips in self._all_clips:
            clips.check_encoders(codec, text)

    def check_captions(self, text: nn.Module) -> list[str]:
        """Raise if training may draw a caption that the encoder refuses; return remarks for the user.

        Captions of validation are never refused: they lose the words that the encoder does not take.
        """
        encoder = None if "text" in self.reading.deliver else text
        said = check_texts([root for root, _ in self.roots], self.training, self.reading.mix, encoder)
        if self.validation is not None:
            said += [f"{self.held.validation_root}: {line}" for line in self.validation.fit(encoder)]
        return said

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Return the first clips of the validation set, or else of the training set, in the usual shape.

        Each has its first window and caption. Every rank gets the same clips. Unreadable clips are skipped.
        """
        return (self.validation or Validation(self._first_of_training(), self.reading, count)).examples(count)

    def _first_of_training(self) -> Clips:
        """Return the last stage's clips in the usual shape, from the first dataset that has any."""
        shape, how = usual(self.trained), {"skip": True, "any_size": self.shapes.any_size}
        last, mine = self.training[-len(self.stages[-1].datasets) :], self.stages[-1].buckets
        number = next(n for n, b in enumerate(mine) if (b.frames, b.height, b.width, b.strides) == shape[1:5])
        source = next(clips for clips in last if clips.rates[number])
        return Clips(source.manifest, [shape.bucket], fixed=True, deliver=tuple(self.reading.deliver), **how)

    def train_dataloader(self) -> Loader | HandedOn:
        """Return this rank's endless stream of micro-batches from `step` on."""
        batches = self._batches(self._mesh())
        if self.trainer is not None and self.trainer.accumulate_grad_batches != batches.accumulate:
            raise ValueError(
                f"trainer.accumulate_grad_batches: found {self.trainer.accumulate_grad_batches}, expected "
                f"{batches.accumulate} = global_batch {self.global_batch} / ({self.at_once(batches.mesh.world)} x "
                f"{batches.mesh.data_world})"
            )
        if not batches.mesh.reads:
            return HandedOn()
        workers = (lambda: self.workers) if self.reading.num_workers else None
        return Loader(batches, self.reader, self.quarantine, workers)

    @cached_property
    def validation_batches(self) -> list[dict[str, Any]]:
        """The validation clips; they stay decoded, as they are few and never change. An unreadable one is an error."""
        mesh = self._mesh()
        return [] if self.validation is None else self.validation.batches(mesh, self.at_once(mesh.world))

    def teardown(self, stage: str) -> None:
        """End the workers."""
        if "workers" in vars(self):
            self.workers.close()
            del self.workers

    def _batches(self, mesh: Mesh) -> GlobalBatches:
        return GlobalBatches(self.order, self.training, self.accumulate(mesh.world), mesh, start=lambda: self.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the order, the settings that it depends on, and the quarantine of all ranks."""
        losses = [self.quarantine.state_dict()]
        if torch.distributed.is_initialized():
            losses *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(losses, self.quarantine.state_dict())
        lost = Quarantine()
        for rank in losses:
            lost.load_state_dict(rank)
        place = {"step": self.step, "left_out": self.left_out}
        return {**place, "quarantine": lost.state_dict(), **self._identity(self.step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint; ValueError if datasets, seed, buckets or batches up to it differ."""
        for clips, before in zip(self.training, state.get("datasets", ()), strict=False):
            if (found := clips.manifest.fingerprint) != before:
                raise ValueError(
                    f"{clips.manifest.path}: found the manifest {found[:12]}, expected {before[:12]} as in the "
                    f"checkpoint: this is another dataset, or it was changed"
                )
        self.loaded_step = resume(state, self._identity(state["step"])) + self.leave_out
        # Checkpoints of before had no such number: there was no rollback.
        self.left_out = int(state.get("left_out", 0)) + self.leave_out
        self.quarantine.load_state_dict(state["quarantine"])

    def _identity(self, step: int) -> dict[str, Any]:
        begun = self.training[: self.order.before[self.order.begun(step)]]
        return self.order.identity(step) | {"datasets": [clips.manifest.fingerprint for clips in begun]}


RECORDS = (Datasets, Shapes, Batches, Reading, Held)


def clip_data(**settings: Any) -> ClipDataModule:
    """Return the data module for the keys of `conf/data/folder.yaml`; each key is a field of one of `RECORDS`."""
    return ClipDataModule(*built(RECORDS, settings))


clip_data.__signature__ = signature_of(RECORDS)
