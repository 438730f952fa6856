"""Garbage is collected between two steps, at the same ones on all ranks."""

from __future__ import annotations

import gc
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class CollectGarbage(Callback):
    """Collect garbage after every `every`-th step and after a validation, and at no other time of a training.

    Python collects by itself when it has made many objects: at another moment on each rank, for tenths of a second, in
    which all other ranks wait. What lives before the first step is not looked at again.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"callbacks.garbage.every: found {every}, expected at least 1")
        self.every, self.automatic, self.frozen = every, False, False

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.automatic, self.frozen = gc.isenabled(), not gc.get_freeze_count()
        gc.disable()
        gc.collect()
        # A program that has frozen objects of its own would lose that when training ends.
        if self.frozen:
            gc.freeze()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if module.step_ended() and trainer.global_step % self.every == 0:
            gc.collect()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            gc.collect()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self.leave()

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        self.leave()

    def leave(self) -> None:
        """Let Python collect by itself again: the next job of a sweep needs the memory of this one."""
        if self.frozen:
            gc.unfreeze()
        if self.automatic:
            gc.enable()
        self.automatic = self.frozen = False
