"""Strategies: how a built model is spread over processes. DeepSpeed's ZeRO runs on CUDA and, for tests, on CPU."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from videodiff.parallel.launcher import watched
from videodiff.training.run.files import StateWriter

# The name of the folder within the state of training.
TAG = "checkpoint"


def automatic() -> str:
    """Let Lightning choose: a single device, or DDP over several."""
    return "auto"


def ddp(**options: Any) -> Strategy:
    """Return plain data parallelism: every process holds the whole model."""
    return Ddp(**options)


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


class Zero(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, also on CPU; its steps are guarded and its checkpoints are files of ours."""

    def __init__(self, config: dict[str, Any]) -> None:
        # Lightning writes into the dictionary it is given.
        super().__init__(config=copy.deepcopy(config))
        self.stage = config["zero_optimization"]["stage"]
        self.state_writer = StateWriter()

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        self._launcher = watched(self._launcher)

    def _initialize_deepspeed_train(self, model: nn.Module) -> None:
        super()._initialize_deepspeed_train(model)
        from videodiff.parallel.engine import PlainFiles, look_for_overflow

        look_for_overflow(self.optimizers[0])
        engine = self.deepspeed_engine
        engine.checkpoint_engine = PlainFiles(self.state_writer)
        # A checkpoint holds no program.
        engine._copy_recovery_script = lambda folder: None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Have every rank write its shard; what goes wrong is told by `state_writer`."""
        state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        self.deepspeed_engine.save_checkpoint(
            str(filepath),
            client_state=state,
            tag=TAG,
            save_latest=False,
            exclude_frozen_parameters=self.exclude_frozen_parameters,
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Have every rank read its shard; no file says where it lies."""
        _, state = self.deepspeed_engine.load_checkpoint(
            str(checkpoint_path), tag=TAG, load_lr_scheduler_states=False, load_module_strict=True
        )
        if state is None:
            raise ValueError(f"{checkpoint_path}: found no state of a training under ZeRO, expected one")
        return state

    def skipped(self) -> bool:
        """Tell whether the last step was left out, as the gradient of some rank was not finite."""
        return bool(self.optimizers[0].overflow)

    def norm_of_gradients(self) -> float | None:
        """Return the norm of the gradient of the last step; under Muon DeepSpeed knows that of the update only."""
        optimizer = self.optimizers[0]
        if any(group.get("use_muon") for group in optimizer.param_groups):
            return None
        return float(optimizer._global_grad_norm)

    def weights(self) -> list[Tensor]:
        """Return the weights that this rank has: all of them, under ZeRO 3 its shard."""
        optimizer = self.optimizers[0]
        if self.stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return [p for p in self.lightning_module.parameters() if p.requires_grad]

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
