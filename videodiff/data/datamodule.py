"""The data of a run for Lightning: an endless training stream and a fixed validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from videodiff.data.buckets import Bucket
from videodiff.data.manifest import Manifest
from videodiff.data.mixture import Dataset, Mixture
from videodiff.data.order import Mesh, micro_batches, resume
from videodiff.data.stream import Clips, Datasets, GlobalBatches, Item, collate


class ClipDataModule(lightning.LightningDataModule):
    """Deliver batches of clips; see `Clips` for the cache and what may be delivered, `Mixture` for the order.

    The state is one integer, the optimizer step: it fits any number of processes, micro-batches and workers, as long as
    seed, batches and datasets are the same. `micro_batch` None is the whole share of a process. `more` datasets, each a
    mapping of root and how often an epoch has its samples (`repeat`), join `root`. `buckets`, mappings of `Bucket`'s
    arguments and `global_batch`, replace the one shape; `window` shards are shuffled together (None: all). With
    `fixed`, each clip is trained on with its first window and caption only. Validation takes the first
    `validation_clips` of `validation_root` (None: no validation), in order, with theirs, in the one shape.
    """

    def __init__(
        self,
        root: str,
        frames: int,
        height: int,
        width: int,
        stride: int = 1,
        global_batch: int = 16,
        micro_batch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_gib: float = 0.0,
        validation_root: str | None = None,
        validation_clips: int = 64,
        deliver: Sequence[str] = ("video",),
        skip_short: bool = False,
        fixed: bool = False,
        more: Sequence[Mapping[str, Any]] = (),
        buckets: Sequence[Mapping[str, Any]] | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        if num_workers < 0 or validation_clips < 1:
            raise ValueError(
                f"found num_workers={num_workers} validation_clips={validation_clips}, expected >= 0, >= 1"
            )
        self.root, self.validation_root, self.validation_clips = root, validation_root, validation_clips
        self.global_batch, self.micro_batch, self.num_workers = global_batch, micro_batch, num_workers
        self.seed, self.cache_gib, self.fixed, self.loaded_step = seed, cache_gib, fixed, 0
        self.how, self.window = {"deliver": tuple(deliver), "skip": skip_short}, window
        self.roots = [(root, Fraction(1)), *((other["root"], Fraction(str(other.get("repeat", 1)))) for other in more)]
        self.shape = Bucket(frames, height, width, strides=(stride,))
        self.any_size = buckets is None
        rules = [{**rule} for rule in buckets or ()]
        self.batch_sizes = [rule.pop("global_batch", global_batch) for rule in rules] or [global_batch]
        self.buckets = [Bucket(**{**rule, "strides": tuple(rule.get("strides", (stride,)))}) for rule in rules]
        self.buckets = self.buckets or [self.shape]

    @cached_property
    def training(self) -> list[Clips]:
        """The training clips of each dataset, opened at first use."""
        how = {
            "cache_gib": self.cache_gib / max(self.num_workers, 1) / len(self.roots),
            "fixed": self.fixed,
            **self.how,
        }
        return [
            Clips(Manifest.load(root), self.buckets, self.seed, any_size=self.any_size, **how) for root, _ in self.roots
        ]

    @cached_property
    def mixture(self) -> Mixture:
        """The order of the training clips."""
        datasets = [
            Dataset(*clips.counts(), repeat) for clips, (_, repeat) in zip(self.training, self.roots, strict=True)
        ]
        return Mixture(datasets, self.buckets, self.batch_sizes, self.seed, self.window)

    @cached_property
    def validation(self) -> Clips | None:
        """The validation clips; they are few and always the same, so they stay decoded in memory."""
        if self.validation_root is None:
            return None
        manifest = Manifest.load(self.validation_root)
        return Clips(manifest, [self.shape], cache_gib=1024.0, fixed=True, any_size=True, **self.how)

    @property
    def step(self) -> int:
        """The optimizer step that comes next: what training has consumed, not what workers have read ahead."""
        return self.loaded_step if self.trainer is None else self.trainer.global_step

    def check(self, world: int = 1) -> None:
        """Raise one clear line where a dataset cannot be read or a batch does not divide over `world` processes."""
        self._batches(Mesh(0, world))
        for clips in [*self.training, self.validation]:
            if clips is not None:
                clips[Item(0, 0, 0, 0)]

    def train_dataloader(self) -> DataLoader:
        """Return this rank's endless stream of micro-batches from `step` on."""
        batches = self._batches(self._mesh())
        if self.trainer is not None and self.trainer.accumulate_grad_batches != batches.accumulate:
            raise ValueError(
                f"trainer.accumulate_grad_batches: found {self.trainer.accumulate_grad_batches}, expected "
                f"{batches.accumulate} = global_batch {self.global_batch} / ({self._micro_batch(batches.mesh.world)} x "
                f"{batches.mesh.world} processes)"
            )
        workers = {}
        if self.num_workers:
            # Neither decord nor CUDA survives a fork.
            workers = {"num_workers": self.num_workers, "persistent_workers": True, "multiprocessing_context": "spawn"}
        return self._loader(Datasets(self.training), batch_sampler=batches, **workers)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Return the fixed clips: each rank its share where they divide over the ranks, else each rank all of them."""
        if self.validation is None:
            return []
        mesh = self._mesh()
        count = min(self.validation_clips, len(self.validation))
        share = range(count)
        if count % mesh.world == 0:
            share = share[mesh.rank * count // mesh.world : (mesh.rank + 1) * count // mesh.world]
        items = [Item(self.step, index, 0, index) for index in share]
        return self._loader(self.validation, sampler=items, batch_size=self._micro_batch(mesh.world))

    def _batches(self, mesh: Mesh) -> GlobalBatches:
        accumulate = micro_batches(self.global_batch, self._micro_batch(mesh.world), mesh.world)
        return GlobalBatches(self.mixture, self.training, accumulate, mesh, start=lambda: self.step)

    def _loader(self, clips: Clips | Datasets, **how: Any) -> DataLoader:
        return DataLoader(clips, collate_fn=collate, pin_memory=torch.cuda.is_available(), **how)

    def _mesh(self) -> Mesh:
        return Mesh() if self.trainer is None else Mesh(self.trainer.global_rank, self.trainer.world_size)

    def _micro_batch(self, world: int) -> int:
        return self.micro_batch or max(self.global_batch // world, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and what must be the same for it to mean the same place."""
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint; another dataset, seed, bucket or batch is an error."""
        self.loaded_step = resume(state, self._identity())

    def _identity(self) -> dict[str, Any]:
        return self.mixture.identity() | {"datasets": [clips.manifest.fingerprint for clips in self.training]}
