"""A callback by which one rank hangs in the middle of a training, outside of any call that waits for the others."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch.callbacks import Callback


class Hang(Callback):
    """Have rank 1 hang before step 4."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            time.sleep(1000)
