"""The data of a run for Lightning: an endless training stream and a fixed validation set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from videodiff.data.manifest import Manifest
from videodiff.data.order import micro_batches
from videodiff.data.stream import Clips, GlobalBatches, Item, collate

SAME = ("seed", "global_batch", "samples", "fingerprint")


class ClipDataModule(lightning.LightningDataModule):
    """Deliver batches of clips; see `Clips` for the window, the cache and what may be delivered.

    The state is one integer, the optimizer step: it fits any number of processes, micro-batches and workers, as long as
    seed, global batch and dataset are the same. `micro_batch` None is the whole share of a process. With `fixed`, each
    clip is trained on with its first window and caption only. Validation takes the first `validation_clips` of
    `validation_root` (None: no validation), in order, with theirs.
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
    ) -> None:
        super().__init__()
        if num_workers < 0 or validation_clips < 1:
            raise ValueError(
                f"found num_workers={num_workers} validation_clips={validation_clips}, expected >= 0, >= 1"
            )
        self.root, self.validation_root, self.validation_clips = root, validation_root, validation_clips
        self.global_batch, self.micro_batch, self.num_workers = global_batch, micro_batch, num_workers
        self.seed, self.cache_gib, self.fixed, self.loaded_step = seed, cache_gib, fixed, 0
        window = {"frames": frames, "height": height, "width": width, "stride": stride}
        self.clip = {**window, "deliver": tuple(deliver), "skip_short": skip_short}

    @cached_property
    def training(self) -> Clips:
        """The training clips, opened at first use."""
        cache_gib = self.cache_gib / max(self.num_workers, 1)
        return Clips(Manifest.load(self.root), seed=self.seed, cache_gib=cache_gib, fixed=self.fixed, **self.clip)

    @cached_property
    def validation(self) -> Clips | None:
        """The validation clips; they are few and always the same, so they stay decoded in memory."""
        if self.validation_root is None:
            return None
        return Clips(Manifest.load(self.validation_root), cache_gib=1024.0, fixed=True, **self.clip)

    @property
    def step(self) -> int:
        """The optimizer step that comes next: what training has consumed, not what workers have read ahead."""
        return self.loaded_step if self.trainer is None else self.trainer.global_step

    def check(self, world: int = 1) -> None:
        """Raise one clear line where a dataset cannot be read or the batch does not divide over `world` processes."""
        micro_batches(self.global_batch, self._micro_batch(world), world)
        for clips in (self.training, self.validation):
            if clips is not None:
                clips[Item(0, 0, 0, 0)]

    def train_dataloader(self) -> DataLoader:
        """Return this rank's endless stream of micro-batches from `step` on."""
        rank, world = self._rank()
        micro = self._micro_batch(world)
        batches = GlobalBatches(
            len(self.training), self.global_batch, micro, rank, world, self.seed, start=lambda: self.step
        )
        if self.trainer is not None and self.trainer.accumulate_grad_batches != batches.micro_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches: found {self.trainer.accumulate_grad_batches}, expected "
                f"{batches.micro_batches} = global_batch {self.global_batch} / ({micro} x {world} processes)"
            )
        workers = {}
        if self.num_workers:
            # Neither decord nor CUDA survives a fork.
            workers = {"num_workers": self.num_workers, "persistent_workers": True, "multiprocessing_context": "spawn"}
        return self._loader(self.training, batch_sampler=batches, **workers)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Return the fixed clips: each rank its share where they divide over the ranks, else each rank all of them."""
        if self.validation is None:
            return []
        rank, world = self._rank()
        count = min(self.validation_clips, len(self.validation))
        share = range(count)
        if count % world == 0:
            share = share[rank * count // world : (rank + 1) * count // world]
        items = [Item(self.step, index, 0, index) for index in share]
        return self._loader(self.validation, sampler=items, batch_size=self._micro_batch(world))

    def _loader(self, clips: Clips, **how: Any) -> DataLoader:
        return DataLoader(clips, collate_fn=collate, pin_memory=torch.cuda.is_available(), **how)

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _micro_batch(self, world: int) -> int:
        return self.micro_batch or max(self.global_batch // world, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and what must be the same for it to mean the same place."""
        return {"step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a checkpoint; another dataset, seed or global batch is an error."""
        here = self._identity()
        for name in SAME:
            if state[name] != here[name]:
                raise ValueError(
                    f"data.{name}: found {here[name]!r} ({self.root}), expected {state[name]!r} as in the checkpoint"
                )
        self.loaded_step = state["step"]

    def _identity(self) -> dict[str, Any]:
        samples, fingerprint = len(self.training), self.training.manifest.fingerprint
        return {"seed": self.seed, "global_batch": self.global_batch, "samples": samples, "fingerprint": fingerprint}
