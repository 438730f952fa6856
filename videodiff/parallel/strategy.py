"""Strategies: how a built model is spread over processes; `conf/strategy` names these functions."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from videodiff.parallel.launcher import watched
from videodiff.parallel.zero.strategy import Zero


def automatic() -> str:
    """Let the number of processes decide: a single device, or DDP over several."""
    return "auto"


def ddp(**options: Any) -> Strategy:
    """Return plain data parallelism: every process holds the whole model."""
    return Ddp(**options)


def for_world(strategy: Strategy | str, world: int) -> Strategy | str:
    """Return the strategy for so many processes: the one that was configured, or what `automatic` leaves open."""
    return ddp() if strategy == "auto" and world > 1 else strategy


class Ddp(DDPStrategy):
    """Lightning's DDP strategy, whose processes end together."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        self._launcher = watched(self._launcher)


def zero(stage: int, **options: Any) -> Strategy:
    """Return DeepSpeed ZeRO: stage 1 shards the optimizer's state, 2 the gradients too, 3 the weights too."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = {
        "zero_optimization": {"stage": stage, **options},
        "zero_allow_untested_optimizer": True,
    }
    return Zero(config=config)
