"""What happens beside the training step: checkpoints, sample clips, the progress line and a gentle stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from tqdm import tqdm

from videodiff.data.loader.trained import usual
from videodiff.data.storage.files import write_whole
from videodiff.generation.files import replacing_folder, write_clip
from videodiff.generation.known import check_given, usual_given
from videodiff.generation.sampling import Wanted, sample_clips
from videodiff.generation.settings import Generation
from videodiff.parallel.launcher import end_now, under_torchrun
from videodiff.text.words import Words
from videodiff.training.average import averaged, is_sharded
from videodiff.training.guard import Diverged, Taken, finite, shortened, suspects, trainable
from videodiff.training.run.checkpoint import agree, check_room, checkpoints, prune, save_checkpoint
from videodiff.training.run.logging import log_figures, show_clips


class Guard(Callback):
    """Tell of each step that was skipped, and end training where too many are or where the weights overflow.

    A step is skipped where its loss or its gradient is not finite on any rank: the weights, the moments and the average
    stay as they are, the data and the schedule go on. Of any `within` steps at most `budget` may be skipped.
    """

    def __init__(self, budget: int = 10, within: int = 1000) -> None:
        if budget < 0 or within < 1:
            raise ValueError(f"guard: found budget={budget} within={within}, expected at least 0 and 1")
        self.budget, self.within, self.skipped = budget, within, []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not module.step_ended():
            return
        if module.was_skipped():
            self.count(trainer, module)
        elif not sound(trainer):
            raise self.ended(
                trainer,
                f"step {trainer.global_step:,} with the learning rate {module.rate:g} left weights that are not "
                "finite, or beyond 1e19, expected numbers; try a lower optimizer.lr",
            )

    def count(self, trainer: lightning.Trainer, module: Any) -> None:
        """Tell of a skipped step, and end training with the first one too many."""
        step = trainer.global_step
        self.skipped = [s for s in self.skipped if s > step - self.within] + [step]
        where = shortened(suspects_of_all(trainer, module))
        many = f"{len(self.skipped)} of at most {self.budget} in {self.within:,} steps"
        if len(self.skipped) > self.budget:
            raise self.ended(
                trainer,
                f"step {step:,}: loss or gradient not finite, clips {where}; {many} "
                "(callbacks.guard.budget); try a lower optimizer.lr, or look at these clips",
            )
        if trainer.is_global_zero:
            say(trainer, f"step {step:,}: skipped, loss or gradient not finite, clips {where}; {many}")

    def ended(self, trainer: lightning.Trainer, why: str) -> BaseException:
        """Return what ends training on this rank; one rank says why."""
        kept = checkpoints(Path(trainer.default_root_dir))
        last = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint"
        return Diverged(f"{why}; {last}") if trainer.is_global_zero else SystemExit(1)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = [int(step) for step in state["skipped"]]


def sound(trainer: lightning.Trainer) -> bool:
    """Tell whether the weights are numbers on all ranks."""
    strategy = trainer.strategy
    if not is_sharded(strategy.optimizers[0]):
        return finite(trainable(trainer.lightning_module))
    fine = finite(strategy.weights())
    return strategy.reduce_boolean_decision(fine, all=True) if strategy.stage == 3 else fine


def suspects_of_all(trainer: lightning.Trainer, module: Any) -> list[str]:
    """Return the keys of the clips of all ranks whose loss is not finite; of all clips where that is true of none."""
    taken = [Taken(keys, losses.cpu()) for keys, losses in module.taken]
    if trainer.world_size > 1:
        ranks = [None] * trainer.world_size
        torch.distributed.all_gather_object(ranks, taken)
        taken = [one for rank in ranks for one in rank]
    return suspects(taken)


def say(trainer: lightning.Trainer, line: str) -> None:
    """Print a line to standard error, past the progress bar where there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(line, file=sys.stderr, flush=True)


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
                check_room(self.folder, trainable(module), self.keep)
            except OSError as error:
                problem = error
        agree(trainer, problem)

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
        # After a micro-batch of the first step there is no step yet, and no average.
        if not step or step % self.every or step == self.sampled:
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
        # What is said of it stands on a line of its own.
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(arg) for arg in args))
