"""A gentle stop: signals end training after the current step, with a checkpoint."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from videodiff.parallel.launcher import end_now, under_torchrun


class StopGently(Callback):
    """End training after the current step, with a checkpoint, when a signal asks for it.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 do. All ranks stop at the same step. A second signal ends all processes at once,
    without a checkpoint.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked, self.said, self.before, self.trainer = False, False, {}, None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.trainer = trainer
        # Not earlier: Lightning sets its own actions between the start of fitting and that of training.
        for number in self.SIGNALS:
            # Under nohup a process ignores SIGHUP, and is to go on doing so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.ask)

    def ask(self, number: int, frame: Any) -> None:
        """Remember the wish; at the second one end all processes of this node."""
        if self.asked:
            os.write(2, b"videodiff train: stopped at once\n")
            launcher = self.trainer.strategy.launcher
            end_now(getattr(launcher, "procs", ()), 128 + number)
        self.asked = True
        # torchrun ends the other ranks by SIGTERM when one has died, and then nothing is saved: told after the step.
        if not (under_torchrun() and number == signal.SIGTERM):
            self.tell()

    def tell(self) -> None:
        """Say once, on the first rank, what happens now."""
        if not self.said and self.trainer.is_global_zero:
            # Not by print: the signal may have come in the middle of one.
            os.write(2, b"\nvideodiff train: saving, then stopping; again to stop at once\n")
        self.said = True

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        # What is left of a step in the middle would be lost.
        if module.step_ended() and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            self.tell()
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        for number, action in self.before.items():
            signal.signal(number, action)
        self.before = {}
