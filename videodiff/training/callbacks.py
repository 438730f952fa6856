"""What happens beside the training step: checkpoints, sample clips, the progress line and a gentle stop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from tqdm import tqdm

from videodiff.data.files import write_whole
from videodiff.data.trained import usual
from videodiff.diffusion.generation import Generation
from videodiff.generation.files import replacing_folder, write_clip
from videodiff.generation.known import check_given, usual_given
from videodiff.generation.sampling import Wanted, sample_clips
from videodiff.text.words import Words
from videodiff.training.average import averaged
from videodiff.training.checkpoint import prune, save_checkpoint
from videodiff.training.logging import show_clips


class Checkpoints(Callback):
    """Save every `every` optimizer steps and at the end, keep the newest `keep` (0: all)."""

    def __init__(self, folder: str | Path, every: int = 1000, keep: int = 2) -> None:
        self.folder, self.every, self.keep, self.saved = Path(folder), every, keep, -1

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        # The step that a run goes on from is there; its first micro-batch would save it again, in the middle of a step.
        self.saved = trainer.global_step

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
    """Every `every` optimizer steps, sample clips with the averaged weights as mp4, in the shape that was trained most.

    From the captions of the first validation clips, without validation from those of the first training clips: half of
    them are continued from their first `given` frames (None: 3, or what is nearest to it where the codec is causal),
    half are made from the caption alone. With `prompts`, from these alone. `captions.json` tells which. The clips of a
    step are there as a whole or not at all, and are made again where a run that was killed goes on at that step.
    Dashboards show them too.
    """

    def __init__(
        self,
        folder: str | Path,
        generation: Generation,
        every: int = 1000,
        clips: int = 4,
        given: int | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        if every < 1 or clips < 1:
            raise ValueError(f"callbacks.samples: found every={every} clips={clips}, expected at least 1 of both")
        self.folder, self.generation, self.every = Path(folder), generation, every
        self.clips, self.given, self.prompts, self.sampled = clips, given, list(prompts), -1
        self.wanted: list[Wanted] = []

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Find out what is to be sampled while nothing is lost yet."""
        codec, shape = module.codec, usual(trainer.datamodule.trained)
        if self.given is None:
            self.given = usual_given(codec, shape.frames)
        elif self.given:
            check_given("callbacks.samples.given", self.given, codec, shape.frames)
        self.shape = shape.shape
        if self.prompts:
            rate = shape.rate or next(iter(shape.rates))
            self.wanted = [Wanted(prompt, rate, seed) for seed, prompt in enumerate(self.prompts)]
        else:
            examples = trainer.datamodule.examples(self.clips)
            self.wanted = [self.want(example, number) for number, example in enumerate(examples)]
        for number, prompt in enumerate(self.prompts):
            if isinstance(module.text, Words) and (fault := module.text.fault(prompt)):
                raise ValueError(f"callbacks.samples.prompts[{number}]: {fault}")

    def want(self, example: dict[str, Any], number: int) -> Wanted:
        """Return the clip to be made like this one: of two the first is continued."""
        known = () if number % 2 else tuple(range(self.given))
        frames, latent = example.get("video"), example.get("latent")
        return Wanted(
            example["caption"],
            float(example["fps"]),
            number,
            known,
            None if frames is None else frames[: len(known)],
            None if latent is None else torch.from_numpy(latent),
        )

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Make what a process was killed at: the step of the checkpoint is not taken again."""
        missing = not self.folder_of(trainer.global_step).is_dir()
        if trainer.global_step and trainer.strategy.broadcast(missing):
            self.sample_at(trainer, module)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.sample_at(trainer, module)

    def sample_at(self, trainer: lightning.Trainer, module: Any) -> None:
        """Sample where it is due, once a step; every rank takes part, the first one writes."""
        step = trainer.global_step
        if step % self.every or step == self.sampled:
            return
        self.sampled = step
        module.eval()
        with averaged(module, trainer.strategy.optimizers[0]), trainer.precision_plugin.forward_context():
            made = sample_clips(module, self.generation, self.wanted, self.shape)
        module.train()
        if trainer.is_global_zero:
            self.write(trainer, step, made)

    def folder_of(self, step: int) -> Path:
        """Return where the clips of a step are."""
        return self.folder / f"step_{step:08d}"

    def write(self, trainer: lightning.Trainer, step: int, made: list[np.ndarray]) -> None:
        """Write the clips of a step, what they were made from, and show them."""
        folder, names = self.folder_of(step), [f"clip_{number}" for number in range(len(made))]
        continued = f" (continued from {self.given} frames)"
        labels = [one.caption + (continued if one.known else "") for one in self.wanted]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "captions.json", json.dumps(dict(zip(names, labels, strict=True)), indent=1).encode())
        with replacing_folder(folder) as partial:
            for name, frames, one in zip(names, made, self.wanted, strict=True):
                write_clip(partial / f"{name}.mp4", frames, one.fps)
        for logger in trainer.loggers:
            show_clips(logger, step, [folder / f"{name}.mp4" for name in names], made, labels)


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
