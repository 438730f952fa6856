"""Sample clips while training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from videodiff.data.loader.trained import usual
from videodiff.data.storage.files import write_whole
from videodiff.generation.files import write_clips
from videodiff.generation.known import check_given, known_latents, mixed, usual_given
from videodiff.generation.prompts import check_prompts
from videodiff.generation.sampling import NotFiniteError, Wanted, going_on, needing_less, sample_clips
from videodiff.generation.settings import Generation
from videodiff.generation.shape import most_frequent_rate
from videodiff.training.average import averaged
from videodiff.training.callbacks.stop import Interrupted, StopGently
from videodiff.training.run.logging import say, show_clips
from videodiff.words import count_text


class SampleClips(Callback):
    """Every `every` optimizer steps, sample clips as mp4 with the averaged weights, in the most trained shape.

    Captions come from the first validation clips, or from the first training clips if there is no validation. Half of
    the clips are continued from their first `given` frames (None: `usual_given`), the other half are made from the
    caption alone. With `prompts`, only these are sampled. `captions.json` lists them. The clips of a step are written
    all together or not at all; a run that was stopped or killed at that step samples them when it resumes. Dashboards
    show them too.
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
        """Choose what to sample before the first step, so that a mistake ends the run early."""
        codec, shape = module.codec, usual(trainer.datamodule.trained)
        if self.given is None:
            self.given = usual_given(codec, shape.frames, module.denoiser)
        elif self.given:
            check_given("callbacks.samples.given", self.given, codec, shape.frames)
        self.shape = shape.shape
        if self.prompts:
            rate = most_frequent_rate(shape)
            self.wanted = [Wanted(prompt, rate, seed) for seed, prompt in enumerate(self.prompts)]
        else:
            examples = trainer.datamodule.examples(self.clips)
            self.wanted = [self.want(example, number) for number, example in enumerate(examples)]
        remarks = check_prompts("callbacks.samples.prompts", self.prompts, module.text)
        for remark in (*remarks, *mixed(self.clean(codec), module.denoiser)):
            if trainer.is_global_zero:
                say(remark)

    def clean(self, codec: Any) -> dict[str, Sequence[int]]:
        """Return the latents that are clean before the others, by the setting that says so."""
        lead = "sampler.lead", range(self.generation.lead)
        given = "callbacks.samples.given"
        return dict((given, known_latents(codec, one.known)) if one.known else lead for one in self.wanted)

    def want(self, example: dict[str, Any], number: int) -> Wanted:
        """Return the request for a clip like this one: every other clip is continued."""
        frames, latent = example.get("video"), example.get("latent")
        latent, given = None if latent is None else torch.from_numpy(latent), 0 if number % 2 else self.given
        return going_on(example["caption"], float(example["fps"]), number, given, frames, latent)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Sample for the step of the checkpoint if a kill prevented it: that step is not taken again."""
        missing = not self.folder_of(trainer.global_step).is_dir()
        if trainer.global_step and trainer.strategy.broadcast(missing):
            self.sample_at(trainer, module)
        # Without this, the first micro-batch would sample for that step again.
        self.sampled = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.sample_at(trainer, module)

    def sample_at(self, trainer: lightning.Trainer, module: Any) -> None:
        """Sample if it is due, once per step; every rank takes part, the first one writes."""
        step = trainer.global_step
        # Inside the first step there is no average yet. After a signal the run samples when it resumes.
        if not step or step % self.every or step == self.sampled or trainer.should_stop:
            return
        self.sampled = step
        with module.stopwatch.during("samples"):
            module.eval()
            with averaged(module, module.engine), trainer.precision_plugin.forward_context():
                made = self.made(trainer)
            module.train()
            if trainer.is_global_zero and made:
                self.write(trainer, step, made)

    @needing_less("fewer callbacks.samples.clips or callbacks.samples.prompts need less")
    def made(self, trainer: lightning.Trainer) -> list[np.ndarray]:
        """Return the clips; none after a signal, or with a line that says so where one is not finite."""
        stops = [callback for callback in trainer.callbacks if isinstance(callback, StopGently)]
        # Before the hooks of an engine, which gather weights.
        hook = trainer.lightning_module.denoiser.register_forward_pre_hook(
            lambda *_: [stop.interrupt(trainer) for stop in stops] and None, prepend=True
        )
        try:
            return sample_clips(trainer.lightning_module, self.generation, self.wanted, self.shape)
        except NotFiniteError as error:
            if trainer.is_global_zero:
                say(f"callbacks.samples: step {trainer.global_step}: {error}")
        except Interrupted:
            pass
        finally:
            hook.remove()
        return []

    def folder_of(self, step: int) -> Path:
        """Return where the clips of a step are."""
        return self.folder / f"step_{step:08d}"

    def write(self, trainer: lightning.Trainer, step: int, made: list[np.ndarray]) -> None:
        """Write the clips of a step and their captions, and show them."""
        names = [f"clip_{number}" for number in range(len(made))]
        continued = f" (continued from {count_text(self.given, 'frame')})"
        labels = [(one.caption or "(no caption)") + (continued if one.known else "") for one in self.wanted]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "captions.json", json.dumps(dict(zip(names, labels, strict=True)), indent=1).encode())
        rates = [one.fps for one in self.wanted]
        paths = write_clips(self.folder_of(step), dict(zip(names, made, strict=True)), rates)
        for logger in trainer.loggers:
            show_clips(logger, step, paths, made, labels)
