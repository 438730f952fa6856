"""Callbacks by which ranks do in the middle of a training what a test waits for."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback


class Hang(Callback):
    """Have rank 1 hang before step 4, outside of any call that waits for the others."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            time.sleep(1000)


class HangsAtItsStart(Callback):
    """Have rank 1 hang before it makes its network, while the others wait for it."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == 1:
            time.sleep(1000)


class FailsAlone(Callback):
    """Have rank 1 fail while clips are sampled."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        def fail(*_: Any) -> None:
            if not module.training:
                raise ValueError("no room for these clips")

        if trainer.global_rank == 1:
            module.denoiser.register_forward_pre_hook(fail, prepend=True)


class Spoils(Callback):
    """Have a weight of rank 1 alone be no number after step 2, as after a fault of its device."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        def spoil(*_: Any) -> None:
            if trainer.global_step == 1:
                next(module.denoiser.parameters()).data.view(-1)[0] = float("nan")

        if trainer.global_rank == 1:
            trainer.optimizers[0].register_step_post_hook(spoil)


class SpoilsUnseen(Callback):
    """Have the row of the last word be no number after step 1: no gradient shows it if no caption has this word."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 1:
            module.text.word.weight.data[-1] = float("nan")


class Told(Callback):
    """Have each rank write the number of its process into `rank_<rank>` after its second step."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 2:
            partial = Path(f".rank_{trainer.global_rank}")
            partial.write_text(f"{os.getpid()}")
            partial.rename(f"rank_{trainer.global_rank}")


class Said(Callback):
    """Have each rank write into `said_<rank>` who it is, and the losses that it has seen."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(outputs["loss"]))
        who = {"pid": os.getpid(), "parent": os.getppid(), "command": sys.argv, "losses": self.losses}
        Path(f"said_{trainer.global_rank}").write_text(json.dumps(who))
