"""Goodput: which share of its wall time a run spends on training steps, and where the rest goes."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from videodiff.training.run.logging import log_figures, say


class Goodput(Callback):
    """Log every `every` steps how the run's time is shared out, over all restarts; print the shares at the end.

    Only the first rank is timed: its waits for other ranks count as computing.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"callbacks.goodput.every: found {every}, expected at least 1")
        self.every, self.stopwatch = every, None

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        self.stopwatch = module.stopwatch

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if module.step_ended() and trainer.global_step % self.every == 0:
            log_figures(trainer, {f"time/{account}": share for account, share in self.stopwatch.shares().items()})

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            shares = self.stopwatch.shares()
            seconds = sum(self.stopwatch.seconds.values())
            told = ", ".join(f"{account} {share:.0%}" for account, share in shares.items() if share >= 0.005)
            say(f"time of the run {seconds:,.0f} s: {told}")

    def state_dict(self) -> dict[str, Any]:
        return self.stopwatch.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stopwatch.resume(state)
