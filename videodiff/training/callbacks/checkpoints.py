"""When checkpoints are saved, and when old ones go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from videodiff.parallel.ranks import agree
from videodiff.training.average import trainable
from videodiff.training.run.checkpoint import check_room, prune
from videodiff.training.run.saving import save_checkpoint


class Checkpoints(Callback):
    """Save every `every` optimizer steps and at the end, keep the newest `keep` (0: all).

    An old checkpoint goes when the step after a new one shows a finite loss: until then nobody knows what the new one
    is worth. So a skipped step is no time to save either, except at the end.
    """

    def __init__(self, folder: str | Path, every: int = 1000, keep: int = 2) -> None:
        self.folder, self.every, self.keep, self.saved = Path(folder), every, keep, -1
        self.due, self.unproven = False, False

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        problem = None
        if trainer.is_global_zero:
            try:
                check_room(self.folder, module.engine.count(trainable(module).values()), self.keep)
            except OSError as error:
                problem = error
        agree(trainer.world_size, problem)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        # The step that a run goes on from is there; its first micro-batch would save it again, in the middle of a step.
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not module.step_ended():
            return
        self.due = self.due or trainer.global_step % self.every == 0
        if not module.was_skipped():
            if self.unproven:
                self.prune(trainer)
            if self.due:
                self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)
        if not module.was_skipped():
            self.prune(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save once a step: the last micro-batch of a step and the end of training may both ask."""
        self.due = False
        if trainer.global_step in (self.saved, 0):
            return
        self.saved = trainer.global_step
        save_checkpoint(trainer, self.folder)
        self.unproven = True

    def prune(self, trainer: lightning.Trainer) -> None:
        """Remove the old ones."""
        self.unproven = False
        if trainer.is_global_zero:
            prune(self.folder, self.keep)
