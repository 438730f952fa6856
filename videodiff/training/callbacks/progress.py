"""The progress line, and the measured rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from videodiff.parallel.ranks import group_size
from videodiff.training.run.logging import log_figures


class Progress(ProgressBar):
    """One line: step, loss, clips and tokens a second, time left; the two rates are logged every `every` steps too.

    `tokens_per_place`: tokens for each of the t x h x w places of the clips, or latents, that batches hold.
    """

    def __init__(self, tokens_per_place: float, every: int = 50, clock: Callable[[], float] = time.perf_counter):
        super().__init__()
        self.tokens_per_place, self.every, self.clock = tokens_per_place, every, clock
        self.bar: tqdm | None = None
        self.shown = True

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        hidden = not (self.shown and trainer.is_global_zero)
        self.bar = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, disable=hidden, unit="step", mininterval=1.0
        )
        self.measure_from(trainer.global_step)

    def measure_from(self, step: int) -> None:
        """Begin a new measurement of the rates."""
        self.since, self.start, self.clips, self.places = self.clock(), step, 0, 0

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        step, x = trainer.global_step, batch["video"] if "video" in batch else batch["latent"]
        shares = trainer.world_size // group_size(trainer)
        self.clips += len(x) * shares
        self.places += x[:, 0].numel() * shares
        self.bar.update(step - self.bar.n)
        if step >= self.start + self.every or step == trainer.max_steps > self.start:
            seconds = max(self.clock() - self.since, 1e-9)
            clips, tokens = self.clips / seconds, self.places * self.tokens_per_place / seconds
            log_figures(trainer, {"train/clips_per_s": clips, "train/tokens_per_s": tokens})
            loss = module.mean_loss()
            self.bar.set_postfix_str(f"loss {loss:.4f}, {clips:.1f} clips/s, {tokens:,.0f} tokens/s")
            self.measure_from(step)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        # Validation and sampling are not training time.
        if not trainer.sanity_checking and self.bar is not None:
            self.measure_from(trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        # Other messages begin on a line of their own.
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(arg) for arg in args))
