"""Signals: after the current step training saves a checkpoint, and ends or goes on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from functools import partial
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from videodiff.parallel.launcher import end_now, under_torchrun
from videodiff.parallel.ranks import summed
from videodiff.printing import say
from videodiff.training.callbacks.checkpoints import Checkpoints

# Seconds in which a signal to all processes reaches the last of them.
ON_ITS_WAY = 1.0


class Interrupted(Exception):
    """A signal asks for an end while something is made that can be made again."""


class StopGently(Callback):
    """End training after the current step, with a checkpoint, when a signal asks for it; at SIGUSR2 save and go on.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 end it. As the time until a job is killed may be short, a validation or samples
    in progress are given up, and none begin before the checkpoint; a resume makes them up. All ranks stop, or save, at
    the same step. A second signal ends all processes of the node at once, without a checkpoint, also while the main
    thread waits for another rank. `stopped`: training ended before its last step because of a signal.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    SAVE = signal.SIGUSR2

    def __init__(self) -> None:
        self.asked, self.said, self.stopped, self.wanted = False, False, False, False
        self.before, self.trainer, self.signals = {}, None, None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.trainer = trainer
        # Not earlier: Lightning sets its own handlers between the start of fitting and the start of training.
        for number in (*self.SIGNALS, self.SAVE):
            # Under nohup a process ignores SIGHUP, and must go on to ignore it.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, nothing)
        # Python runs handlers between two bytecode instructions, so two signals during one call into torch would be
        # seen late and as one. The interpreter writes each signal to this socket at once.
        self.signals, numbers = socket.socketpair()
        self.signals.setblocking(False)
        signal.set_wakeup_fd(self.signals.fileno(), warn_on_full_buffer=False)
        # A forked worker gets the same Ctrl-C: it must not count as a second one.
        os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))
        threading.Thread(target=self.listen, args=(numbers,), daemon=True, name="signals").start()

    def listen(self, numbers: socket.socket) -> None:
        """Act on each signal that arrives, until training ends."""
        with numbers:
            while arrived := numbers.recv(1):
                if arrived[0] == self.SAVE:
                    self.wanted = True
                elif arrived[0] in self.before:
                    self.ask(arrived[0])

    def ask(self, number: int) -> None:
        """Note that a stop was asked for; at the second signal end all processes of this node."""
        if self.asked:
            os.write(2, b"videodiff train: stopped at once\n")
            launcher = self.trainer.strategy.launcher
            end_now(getattr(launcher, "procs", ()), 128 + number)
        self.asked = True
        # When a rank dies, torchrun sends SIGTERM to the others, and nothing is saved: so the line comes after the
        # step.
        if not (under_torchrun() and number == signal.SIGTERM):
            self.tell()

    def tell(self) -> None:
        """Say once, on the first rank, what happens now."""
        if not self.said and self.trainer.is_global_zero:
            # Not by print: the signal may have come in the middle of one.
            os.write(2, b"\nvideodiff train: saving, then stopping; again to stop at once\n")
        self.said = True

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        # In the middle of a step, the micro-batches taken so far would be lost.
        if not module.step_ended():
            return
        stops, saves = self.agreed(trainer)
        if stops:
            self.stop(trainer)
        elif saves:
            self.save(trainer)

    def on_validation_batch_start(self, trainer: lightning.Trainer, module: Any, *rest: Any) -> None:
        if self.agreed(trainer)[0]:
            self.stop(trainer)
            module.abandon_validation()
            # Lightning takes it as the end of the batches.
            raise StopIteration

    def interrupt(self, trainer: lightning.Trainer) -> None:
        """Raise Interrupted if a signal asks for an end; for what takes long between two steps, on all ranks alike."""
        if self.agreed(trainer)[0]:
            self.stop(trainer)
            raise Interrupted

    def stop(self, trainer: lightning.Trainer) -> None:
        """End training at this step."""
        self.tell()
        self.stopped = trainer.global_step < trainer.max_steps
        trainer.should_stop = True
        # Lightning would validate before it ends.
        trainer.limit_val_batches = 0

    def agreed(self, trainer: lightning.Trainer) -> tuple[bool, bool]:
        """Return whether a signal to any rank asks for an end, and for a checkpoint."""
        stops, saves = summed(trainer, self.asked, self.wanted)
        return stops > 0, saves > 0

    def save(self, trainer: lightning.Trainer) -> None:
        """Have a checkpoint saved with the next step that is not skipped, as its own turn in this one is over."""
        self.wanted = False
        saving = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]
        for callback in saving:
            callback.due = True
        if trainer.is_global_zero:
            what = "a checkpoint is saved, training goes on" if saving else "nothing saves checkpoints here"
            say(f"step {trainer.global_step:,}: SIGUSR2: {what}")

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        # A process that acts on the second signal first is lost to the others, to which the same signal is on its way.
        if self.asked and trainer.world_size > 1:
            time.sleep(ON_ITS_WAY)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        if self.signals is not None:
            signal.set_wakeup_fd(-1)
            self.signals.close()
            self.signals = None
        for number, action in self.before.items():
            signal.signal(number, action)
        self.before = {}


def nothing(number: int, frame: Any) -> None:
    """Keep the signal from ending the process; the thread acts on it."""
