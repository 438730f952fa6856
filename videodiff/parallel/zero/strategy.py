"""Lightning's DeepSpeed strategy, mended: ZeRO runs on CUDA and, for tests, on CPU."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.nn import functional

from videodiff.parallel.launcher import watched
from videodiff.parallel.sequence.group import SequenceGroup
from videodiff.parallel.sequence.strategy import SharesClips
from videodiff.parallel.zero.engine import ZeroEngine, examine
from videodiff.parallel.zero.nvme import Folder


class Zero(SharesClips, DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, also on CPU; its steps are guarded."""

    def __init__(self, config: dict[str, Any], sequence_parallel: int = 1) -> None:
        # Lightning writes into the dictionary it is given.
        super().__init__(config=copy.deepcopy(config))
        self.engine = ZeroEngine(self, config["zero_optimization"]["stage"])
        self.sequence = SequenceGroup(sequence_parallel)
        # For ZeRO 3 DeepSpeed exchanges it for all that this process does, then and later.
        self.linear = functional.linear

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        self._launcher = watched(self._launcher)

    def _initialize_deepspeed_train(self, model: nn.Module) -> None:
        super()._initialize_deepspeed_train(model)
        examine(self.engine, self.optimizers[0])

    def _auto_select_batch_size(self) -> int:
        # DeepSpeed needs it only for a throughput that it prints; we measure our own, so no loader is asked.
        return 1

    def setup_environment(self) -> None:
        """Set up devices and processes; on a CPU without the checks that only CUDA can pass."""
        state = self.config["zero_optimization"].get("offload_optimizer", {})
        if "nvme_path" in state and self.engine.folder is None:
            self.engine.folder = Folder(Path(state["nvme_path"]))
            state["nvme_path"] = str(self.engine.folder.path)
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        import deepspeed

        # gloo communicates: the shared-memory kernel would have to be compiled first.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        Strategy.setup_environment(self)
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def model_sharded_context(self) -> AbstractContextManager[None]:
        """Return an empty context: DeepSpeed's context splits a module before its parent has set its weights to zero.

        `ZeroEngine.adopt` splits the complete network.
        """
        self._init_config_if_needed()
        return nullcontext()

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the backward pass; Lightning has divided the loss by the micro-batches, so DeepSpeed must not."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def teardown(self) -> None:
        """Leave the process group, and torch's functions as they were.

        gloo may wait for ever if its group is left to the end of the process. DeepSpeed would use the old groups when
        this process trains again.
        """
        import deepspeed

        if self.lightning_module is not None and any(p.is_meta for p in self.lightning_module.parameters()):
            # Lightning would move the network to the host; for a network without memory this would hide the real error.
            self._lightning_module = None
        super().teardown()
        functional.linear = self.linear
        if torch.distributed.is_initialized():
            deepspeed.comm.destroy_process_group()
        if self.engine.folder is not None:
            self.engine.folder.remove()

    @property
    def root_device(self) -> torch.device:
        """Return this process's device; DeepSpeed needs an index, even on a CPU."""
        device = super().root_device
        return device if device.index is not None else torch.device(device.type, self.local_rank)
