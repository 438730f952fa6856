"""What is seen of a run of `videodiff train` from outside: losses, seconds of steps, memory, copies."""

from __future__ import annotations

import time
from typing import Any

import torch
from gpu.check import in_use_gib, peak_gib, settle, wait
from lightning.pytorch.callbacks import Callback


class Watch(Callback):
    """Keep the loss of every micro-batch; with `timed`, wait for the device at both ends of each."""

    def __init__(self, timed: bool = False) -> None:
        self.timed, self.losses, self.pinned = timed, [], []
        self.began: list[float] = []
        self.ended: list[float] = []
        self.peak, self.device, self.places = 0.0, torch.device("cpu"), 0
        self.before = in_use_gib()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.device = module.device
        settle(self.device)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.began.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(outputs["loss"].detach())
        if self.timed:
            wait(self.device)
            self.ended.append(time.perf_counter())
            self.places += (batch["video"] if "video" in batch else batch["latent"])[:, 0].numel()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        wait(self.device)
        self.peak = peak_gib(self.device) - self.before

    def curve(self) -> list[float]:
        """Return the losses as they are on the host."""
        return [float(loss) for loss in self.losses]

    def waited(self, skip: int) -> tuple[float, float]:
        """Return seconds of steps after the first `skip`, and seconds before them; `skip` is at least 1."""
        work = sum(e - b for b, e in zip(self.began[skip:], self.ended[skip:], strict=True))
        between = sum(b - e for e, b in zip(self.ended[skip - 1 : -1], self.began[skip:], strict=True))
        return work, between
