"""Strategies: how a built model is spread over processes; `conf/strategy` names these functions."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from videodiff.parallel.launcher import watched
from videodiff.parallel.sequence.group import SequenceGroup
from videodiff.parallel.sequence.strategy import SharesClips
from videodiff.parallel.zero.strategy import Zero


def automatic(sequence_parallel: int = 1) -> Strategy | str:
    """Let the number of processes decide: a single device, or DDP over several."""
    return "auto" if sequence_parallel == 1 else ddp(sequence_parallel)


def ddp(sequence_parallel: int = 1, **options: Any) -> Strategy:
    """Return plain data parallelism: every process holds the whole model.

    `sequence_parallel` consecutive processes share the work on each clip.
    """
    return Ddp(sequence_parallel, **options)


def for_world(strategy: Strategy | str, world: int) -> Strategy | str:
    """Return the strategy for so many processes: the one that was configured, or what `automatic` leaves open."""
    return ddp() if strategy == "auto" and world > 1 else strategy


class Ddp(SharesClips, DDPStrategy):
    """Lightning's DDP strategy, whose processes end together."""

    def __init__(self, sequence_parallel: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.sequence = SequenceGroup(sequence_parallel)

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        self._launcher = watched(self._launcher)


def zero(stage: int, sequence_parallel: int = 1, **options: Any) -> Strategy:
    """Return DeepSpeed ZeRO: stage 1 shards the optimizer's state, 2 the gradients too, 3 the weights too.

    It does so over all processes, also where `sequence_parallel` of them share each clip.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = {
        "zero_optimization": {"stage": stage, **options},
        "zero_allow_untested_optimizer": True,
    }
    return Zero(config, sequence_parallel)
