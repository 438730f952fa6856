"""What happens beside the training step: checkpoints, sample clips, the progress line and a gentle stop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor
from tqdm import tqdm

from videodiff.data.encode import encode
from videodiff.data.files import write_whole
from videodiff.diffusion.generation import Generation, clip_noise
from videodiff.training.average import averaged
from videodiff.training.checkpoint import prune, save_checkpoint
from videodiff.training.encoding import encode_video
from videodiff.training.logging import show_clips


class Checkpoints(Callback):
    """Save every `every` optimizer steps and at the end, keep the newest `keep` (0: all)."""

    def __init__(self, folder: str | Path, every: int = 1000, keep: int = 2) -> None:
        self.folder, self.every, self.keep, self.saved = Path(folder), every, keep, -1

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save once a step: the last micro-batch of a step and the end of training may both ask."""
        if trainer.global_step in (self.saved, 0):
            return
        self.saved = trainer.global_step
        save_checkpoint(trainer, self.folder)
        if trainer.is_global_zero:
            prune(self.folder, self.keep)


class StopGently(Callback):
    """End training after the current step when SIGINT or SIGTERM arrives, so that the last checkpoint is whole.

    A second signal ends the process at once. All ranks stop at the same step.
    """

    def __init__(self) -> None:
        self.asked, self.before, self.step = False, {}, 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.step = trainer.global_step
        # Not earlier: Lightning sets its own actions between the start of fitting and that of training.
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.ask)

    def ask(self, number: int, frame: Any) -> None:
        """Remember the wish and give the signal back to its former owner."""
        self.asked = True
        signal.signal(number, self.before[number] or signal.SIG_DFL)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        # What is left of a step in the middle would be lost.
        ended, self.step = trainer.global_step > self.step, trainer.global_step
        if ended and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        for number, action in self.before.items():
            signal.signal(number, action)
        self.before = {}


class SampleClips(Callback):
    """Every `every` optimizer steps, sample the first validation captions with the averaged weights as mp4.

    Half of the clips are continued from their first `given` frames, half are made from the caption alone;
    `captions.json` tells which. Dashboards show them too.
    """

    def __init__(self, folder: str | Path, generation: Generation, every: int = 1000, clips: int = 4, given: int = 3):
        self.folder, self.generation, self.every = Path(folder), generation, every
        self.clips, self.given, self.sampled = clips, given, -1

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self.sampled and trainer.datamodule.validation_root is not None:
            self.sampled = step
            module.eval()
            with averaged(module, trainer.strategy.optimizers[0]):
                videos, batch = self.sample(trainer, module)
            module.train()
            if trainer.is_global_zero:
                self.write(trainer, step, [to_frames(video) for video in videos], batch)

    @torch.no_grad()
    def sample(self, trainer: lightning.Trainer, module: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return sampled videos `b c t h w` in [-1, 1] and the batch that they are to resemble."""
        batch = first_clips(next(iter(trainer.datamodule.val_dataloader())), self.clips)
        batch = trainer.strategy.batch_to_device(batch)
        x = encode_video(batch, module.codec, module.device)
        known = torch.zeros(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
        known[::2, : self.given] = True
        noise = clip_noise(x.shape[1:], range(len(x)), x.device)
        with trainer.precision_plugin.forward_context():
            objective = module.objective
            made = self.generation(
                module.denoiser, module.condition(batch), module.null(), objective.path, objective.prediction,
                noise, x, known,
            )  # fmt: skip
        return module.codec.decode(made), batch

    def write(self, trainer: lightning.Trainer, step: int, clips: list[Any], batch: dict[str, Any]) -> None:
        """Write the clips of a step, what they were made from, and show them."""
        folder = self.folder / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"clip_{i}.mp4" for i in range(len(clips))]
        for path, frames in zip(paths, clips, strict=True):
            path.write_bytes(encode(frames, float(batch["fps"][0])))
        labels = [
            caption if i % 2 else f"{caption} (continued from {self.given} frames)"
            for i, caption in enumerate(batch["caption"])
        ]
        names = {path.stem: label for path, label in zip(paths, labels, strict=True)}
        write_whole(self.folder / "captions.json", json.dumps(names, indent=1).encode())
        for logger in trainer.loggers:
            show_clips(logger, step, paths, clips, labels)


def first_clips(batch: dict[str, Any], n: int) -> dict[str, Any]:
    """Return the first `n` entries of every list and tensor of a batch."""
    return {key: value[:n] if isinstance(value, (Tensor, list)) else value for key, value in batch.items()}


def to_frames(video: Tensor) -> Any:
    """Turn a video `c t h w` in [-1, 1] into uint8 `t h w c`."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


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
        self.clips += len(x) * trainer.world_size
        self.places += x[:, 0].numel() * trainer.world_size
        self.bar.update(step - self.bar.n)
        if step >= self.start + self.every:
            seconds = self.clock() - self.since
            clips, tokens = self.clips / seconds, self.places * self.tokens_per_place / seconds
            module.log_dict({"train/clips_per_s": clips, "train/tokens_per_s": tokens}, rank_zero_only=True)
            loss = float(trainer.callback_metrics["train/loss"])
            self.bar.set_postfix_str(f"loss {loss:.4f}, {clips:.1f} clips/s, {tokens:,.0f} tokens/s")
            self.measure_from(step)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        # Validation and sampling are not training time.
        if not trainer.sanity_checking and self.bar is not None:
            self.measure_from(trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        # What is said of it stands on a line of its own.
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(arg) for arg in args))
