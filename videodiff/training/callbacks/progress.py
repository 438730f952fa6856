"""The progress line, and the measured rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from videodiff.parallel.ranks import group_size
from videodiff.planning.work import Window, Work, utilisation
from videodiff.training.limits import peak_flops, peak_memory_gib
from videodiff.training.run.logging import log_figures


class Progress(ProgressBar):
    """One line: step, loss, clips and tokens a second, time left; every `every` steps all rates are logged too.

    `work` returns what a clip takes, by its size `t h w` and whether it is in pixels. docs/performance.md tells what
    each figure counts.
    """

    def __init__(
        self,
        work: Callable[[Sequence[int], bool], Work],
        every: int = 50,
    ) -> None:
        super().__init__()
        self.work, self.every = work, every
        self.bar: tqdm | None = None
        self.shown, self.peak = True, None

    def disable(self) -> None:
        # Lightning calls it on all ranks but the first.
        self.shown = False

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.bar = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, disable=not self.shown, unit="step", mininterval=1.0
        )
        if trainer.is_global_zero:
            peak = peak_flops(module.device, str(trainer.precision))
            self.peak = peak and peak * trainer.world_size
        self.measure_from(trainer.global_step, module)

    def measure_from(self, step: int, module: Any) -> None:
        """Begin a new measurement of the rates."""
        self.since, self.start, self.window = module.stopwatch.state(), step, Window()
        module.padding = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        step, pixels = trainer.global_step, "video" in batch
        x = batch["video" if pixels else "latent"]
        shares = trainer.world_size // group_size(trainer)
        encoders, words = module.encoder_flops(batch) * trainer.world_size, module.text_places * shares
        self.window = self.window.plus(len(x) * shares, self.work(x.shape[2:], pixels), encoders, words)
        self.bar.update(step - self.bar.n)
        if step >= self.start + self.every or step == trainer.max_steps > self.start:
            self.tell(trainer, module)
            self.measure_from(step, module)

    def tell(self, trainer: lightning.Trainer, module: Any) -> None:
        """Log what was measured, and write it on the line."""
        seconds = max(module.stopwatch.trained_since(self.since), 1e-9)
        waited = module.stopwatch.state()["data"] - self.since["data"]
        # The other ranks have clips of the same kind.
        padding = float(module.padding) * trainer.world_size // group_size(trainer)
        figures = utilisation(self.window._replace(padding=padding), seconds, waited, self.peak)
        log_figures(trainer, {**figures, "train/peak_memory_gib": peak_memory_gib(module.device)})
        told = [f"loss {module.mean_loss():.4f}", f"{figures['train/clips_per_s']:.1f} clips/s"]
        told += [f"{figures['train/tokens_per_s']:,.0f} tokens/s"]
        told += [f"MFU {figures['train/mfu']:.0%}"] if "train/mfu" in figures else []
        told += [f"data {figures['train/data_wait']:.0%}"]
        self.bar.set_postfix_str(", ".join(told))

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        # Other messages begin on a line of their own.
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(arg) for arg in args))
