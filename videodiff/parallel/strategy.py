"""Strategies: how a built model is spread over processes. DeepSpeed's ZeRO runs on CUDA and, for tests, on CPU."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor


def automatic() -> str:
    """Let Lightning choose: a single device, or DDP over several."""
    return "auto"


def ddp(**options: Any) -> Strategy:
    """Return plain data parallelism: every process holds the whole model."""
    return DDPStrategy(**options)


def zero(stage: int, **options: Any) -> Strategy:
    """Return DeepSpeed ZeRO: stage 1 shards the optimizer's state, 2 the gradients too, 3 the weights too."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = {
        "zero_optimization": {"stage": stage, **options},
        "zero_allow_untested_optimizer": True,
    }
    return Zero(config=config)


class Zero(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy without its refusal of processors other than CUDA."""

    def __init__(self, config: dict[str, Any]) -> None:
        # Lightning writes into the dictionary it is given.
        super().__init__(config=copy.deepcopy(config))
        self.stage = config["zero_optimization"]["stage"]

    def setup_environment(self) -> None:
        """Set up devices and processes; on a CPU without the checks that only CUDA can pass."""
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        import deepspeed

        # gloo does it: the shared-memory kernel would have to be compiled first.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        Strategy.setup_environment(self)
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the backward pass; Lightning has divided the loss by the micro-batches, so DeepSpeed must not."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def teardown(self) -> None:
        """Leave the process group: gloo may wait for ever if it is left to the end of the process.

        DeepSpeed does it, or it would go on to use the groups that are gone when this process trains again.
        """
        import deepspeed

        super().teardown()
        if torch.distributed.is_initialized():
            deepspeed.comm.destroy_process_group()

    @property
    def root_device(self) -> torch.device:
        """Return this process's device; DeepSpeed wants an index, on a CPU too."""
        device = super().root_device
        return device if device.index is not None else torch.device(device.type, self.local_rank)
