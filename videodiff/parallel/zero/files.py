"""The files of a checkpoint under ZeRO: DeepSpeed says what and when, the bytes are written and read here."""

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
    """DeepSpeed's engine for checkpoints: write shards with checksums, read them without running their code."""

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
