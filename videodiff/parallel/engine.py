"""What is set in DeepSpeed's engine: its files, and where it looks for numbers that are none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from videodiff.training.run.files import StateWriter, load_state

# The classes of DeepSpeed that its shards hold; none of them does anything when it is read.
CLASSES = (LossScaler, ZeroStageEnum, fragment_address)


class PlainFiles(CheckpointEngine):
    """Write shards with their checksums, and read them without running code of theirs."""

    def __init__(self, writer: StateWriter) -> None:
        super().__init__()
        self.name, self.writer = "PlainFiles", writer

    def create(self, info: CheckpointCommitInfo) -> None:
        """Begin a checkpoint: nothing is to be done."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        if self.writer.problem is None:
            try:
                os.makedirs(path, exist_ok=exist_ok)
            except OSError as error:
                self.writer.problem = error

    def save(self, state_dict: Any, path: str) -> None:
        """Write a shard."""
        self.writer.write(state_dict, Path(path))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a shard."""
        return load_state(Path(path), map_location, CLASSES)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """End a checkpoint: it has its name later, when all ranks are done."""
        return True


def look_for_overflow(optimizer: Any) -> None:
    """Have a ZeRO optimizer leave out a step whose gradient is not finite, which it does by itself in float16 alone."""
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True
        return

    def check(update_scale: bool = True) -> bool:
        optimizer.overflow = False
        optimizer.check_overflow()
        if optimizer.overflow:
            # It keeps the sums of gradients in one buffer, which only the next gradient of a parameter overwrites.
            optimizer.grad_partitions_flat_buffer.zero_()
        return optimizer._loss_scale_update_and_overflow_cleanup() if update_scale else optimizer.overflow

    optimizer._overflow_check_and_loss_scale_update = check
