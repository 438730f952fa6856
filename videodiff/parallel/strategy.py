"""Strategies: how a model is spread over processes; `conf/strategy` names these functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from videodiff.parallel.birth import unborn
from videodiff.parallel.engine import engine_of
from videodiff.parallel.fsdp.strategy import Fsdp
from videodiff.parallel.launcher import watched
from videodiff.parallel.sequence.group import SequenceGroup
from videodiff.parallel.sequence.strategy import SharesClips
from videodiff.parallel.zero.config import configuration
from videodiff.parallel.zero.strategy import Zero
from videodiff.words import count_text


def automatic(sequence_parallel: int = 1) -> Strategy | str:
    """Choose by the number of processes: a single device, or DDP over several."""
    return "auto" if sequence_parallel == 1 else ddp(sequence_parallel)


def single() -> str:
    """Train in one process, on one device."""
    return "single"


def ddp(sequence_parallel: int = 1, **options: Any) -> Strategy:
    """Return plain data parallelism: every process holds the whole model.

    `sequence_parallel` consecutive processes share the work on each clip.
    """
    return Ddp(sequence_parallel, **options)


def for_world(strategy: Strategy | str, world: int) -> Strategy | str:
    """Return the strategy for so many processes: the configured one, or the one that `automatic` leaves open."""
    if strategy == "single" and world > 1:
        raise ValueError(
            f"trainer.devices: found {count_text(world, 'process')} for strategy=single, expected 1; choose "
            "strategy=ddp, zero1, zero2, zero3 or fsdp2"
        )
    return strategy if isinstance(strategy, Strategy) else ddp() if world > 1 else "auto"


def birth_under(strategy: Strategy | str) -> Callable[[Callable[[], nn.Module]], nn.Module]:
    """Return how a network is built under a strategy: without memory if no process may hold it whole."""
    splits = isinstance(strategy, Strategy) and engine_of(strategy).split
    return unborn if splits else lambda make: make()


class Ddp(SharesClips, DDPStrategy):
    """Lightning's DDP strategy, whose processes end together."""

    def __init__(self, sequence_parallel: int = 1, **options: Any) -> None:
        # Also where `automatic` chooses this strategy: copies of the gradients would take 4 bytes more per weight.
        super().__init__(**{"gradient_as_bucket_view": True, **options})
        self.sequence = SequenceGroup(sequence_parallel)

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        self._launcher = watched(self._launcher)


def zero(
    stage: int,
    sequence_parallel: int = 1,
    offload: str | None = None,
    nvme: str | None = None,
    pin_memory: bool = True,
    **options: Any,
) -> Strategy:
    """Return DeepSpeed ZeRO: stage 1 shards the optimizer's state, 2 the gradients too, 3 the weights too.

    It shards over all processes, also if `sequence_parallel` of them share each clip. `offload` "state" keeps the
    optimizer's state on the host and takes steps there, "all" keeps the weights there too, in pinned memory; the state
    is in the folder `nvme` instead, if there is one. `options` are DeepSpeed's own.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return Zero(configuration(stage, offload, nvme, pin_memory, **options), sequence_parallel)


def fsdp2(
    reshard_after_forward: bool = True,
    gather: str = "float32",
    reduce: str = "float32",
    sequence_parallel: int = 1,
) -> Strategy:
    """Return torch's FSDP2: weights, gradients and the optimizer's state are split by rows, block by block.

    It splits over all processes, also if `sequence_parallel` of them share each clip."""
    return Fsdp(reshard_after_forward, gather, reduce, sequence_parallel)
