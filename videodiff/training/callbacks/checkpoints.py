"""When checkpoints are saved, and when old ones go."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from videodiff.data.storage.files import write_whole
from videodiff.parallel.ranks import agreed, summed
from videodiff.training.average import trainable
from videodiff.training.guard import prove
from videodiff.training.module import VALIDATED
from videodiff.training.run.logging import say
from videodiff.training.run.validated import is_due
from videodiff.training.state.checkpoint import check_room, prune
from videodiff.training.state.mirror import Mirror
from videodiff.training.state.saving import Buffers, Saving

BEST = "best.json"
# Seconds: from when a wait for the previous save is reported, and how long an error waits for a save of several ranks.
LONG, PATIENCE = 1.0, 10.0
# Seconds that the end of training waits for an object store.
LAST = 600.0


class Checkpoints(Callback):
    """Save every `every` optimizer steps, every `minutes`, and at the end; keep the newest `keep` (0: all).

    Also kept: checkpoints of steps that `keep_every` divides, and the one with the lowest `best`, a validation loss
    such as val/loss. A validation that lowers it saves a checkpoint. `asynchronous`: a thread writes copies of the
    state while training goes on; a second save waits for the first.

    An old checkpoint is removed only when the step after the new one had a finite loss, because the new weights may be
    bad. For the same reason no checkpoint is saved at a skipped step, except at the end.

    `mirror`: a folder of runs in an object store, such as s3://bucket/runs. Each checkpoint is copied there, and
    removed there when it is removed here.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 1000,
        keep: int = 2,
        keep_every: int | None = None,
        best: str | None = None,
        minutes: float | None = None,
        asynchronous: bool = True,
        mirror: str | None = None,
    ) -> None:
        self.folder, self.every, self.keep, self.saved = Path(folder), every, keep, -1
        self.keep_every, self.best, self.minutes, self.asynchronous = keep_every, best, minutes, asynchronous
        self.due, self.unproven, self.told = False, False, False
        # After a validation: it found a lower loss, or the checkpoint of its step has waited for it.
        self.improved, self.waiting = False, False
        self.lowest: tuple[float, int] | None = None
        self.saving: Saving | None = None
        self.buffers, self.began = Buffers(), time.monotonic()
        # Of the first process alone.
        self.place, self.mirror = mirror, None

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        with agreed(trainer.world_size):
            self.check_best(trainer)
            if trainer.is_global_zero:
                kept = self.keep and self.keep + (self.best is not None)
                check_room(self.folder, module.engine.count(trainable(module).values()), kept)
                if self.place is not None:
                    mirror = Mirror(self.place, Path(trainer.default_root_dir), self.keep, self.is_kept)
                    mirror.begin(new=module.checkpoint is None)
                    self.mirror = mirror

    def check_best(self, trainer: lightning.Trainer) -> None:
        """Raise if there is no loss of the name that says which checkpoint is best."""
        if self.best is None:
            return
        if self.best not in VALIDATED:
            raise ValueError(f"callbacks.checkpoints.best: found {self.best!r}, expected one of {', '.join(VALIDATED)}")
        if not trainer.limit_val_batches:
            raise ValueError(
                f"callbacks.checkpoints.best: found {self.best!r} without clips to validate with; set "
                "data.validation_root, or leave it out"
            )

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        # The checkpoint that a run resumes from exists; without this, the first micro-batch would save it again.
        self.saved, self.began = trainer.global_step, time.monotonic()
        self.lowest = trainer.strategy.broadcast(self.lowest_before(trainer.global_step))
        if trainer.is_global_zero:
            # It may be of another loss, or of a later step that was put aside.
            (self.folder / BEST).unlink(missing_ok=True)
            self.record_best()
        if self.mirror is not None:
            self.mirror.start = trainer.global_step

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, index: int) -> None:
        # Not at the end of validation: a resumed run would continue inside that validation.
        if self.improved or self.waiting:
            self.save(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not module.step_ended():
            return
        if self.saving is not None and self.has_ended(trainer, self.saving):
            self.finish()
        self.due = self.due or trainer.global_step % self.every == 0 or self.is_late(trainer)
        if not module.was_skipped():
            if self.unproven and self.saving is None:
                self.prune(trainer)
            # Its state says which one is the best, and so has to know the loss of its own step.
            self.waiting = self.due and self.best is not None and is_due(trainer)
            if self.due and not self.waiting:
                self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.best is None or trainer.sanity_checking:
            return
        loss = module.validated_figures.get(self.best, math.nan)
        # Nothing is lower than a loss that is no number.
        if math.isfinite(loss) and (self.lowest is None or loss < self.lowest[0]):
            self.lowest, self.improved = (loss, trainer.global_step), True

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)
        self.finish()
        if not module.was_skipped():
            self.prune(trainer)
        if self.mirror is not None:
            self.mirror.finish(LAST)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Wait for the checkpoint in progress, as its state is good; not for ever, as other processes may be dead."""
        if self.saving is not None:
            self.saving.thread.join(None if trainer.world_size == 1 else PATIENCE)
        if self.mirror is not None:
            self.mirror.finish(PATIENCE)

    def has_ended(self, trainer: lightning.Trainer, saving: Saving) -> bool:
        """Return on every rank whether a save is done on all of them, or has failed on one: no other then ends."""
        mine = trainer.world_size if saving.problem is not None else int(saving.done())
        return summed(trainer, mine)[0] >= trainer.world_size

    def is_late(self, trainer: lightning.Trainer) -> bool:
        """Return whether the next checkpoint is due, by the clock of the first rank."""
        if self.minutes is None:
            return False
        late = trainer.is_global_zero and time.monotonic() - self.began > 60 * self.minutes
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def save(self, trainer: lightning.Trainer) -> None:
        """Begin to save, at most once per step: the last micro-batch and the end of training may both ask for it."""
        self.due = self.improved = self.waiting = False
        if trainer.global_step not in (self.saved, 0):
            with trainer.lightning_module.stopwatch.during("checkpoint"):
                self.begin(trainer)
        elif trainer.is_global_zero and self.saving is None:
            # A resume has made up the validation of this step.
            self.record_best()

    def begin(self, trainer: lightning.Trainer) -> None:
        """Begin to save weights that are numbers, when the previous checkpoint is on the disk."""
        prove(trainer)
        if self.saving is not None:
            before, began = self.saving.step, time.monotonic()
            self.finish()
            self.tell_wait(trainer, before, time.monotonic() - began)
        self.saved, self.began = trainer.global_step, time.monotonic()
        self.saving, self.unproven = Saving(trainer, self.folder, self.buffers), True
        if not self.asynchronous:
            self.finish()

    def tell_wait(self, trainer: lightning.Trainer, before: int, seconds: float) -> None:
        """Print once that checkpoints are due faster than they are written."""
        if seconds > LONG and not self.told and trainer.is_global_zero and not trainer.should_stop:
            self.told = True
            say(
                f"step {trainer.global_step:,}: waited {seconds:.1f} s for the checkpoint of step {before:,} to be on "
                f"the disk; a larger callbacks.checkpoints.every than {self.every} would not wait"
            )

    def finish(self) -> None:
        """Wait until the checkpoint that is being written has its name."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.finish()
            if saving.rank == 0:
                self.record_best()
            if self.mirror is not None:
                self.mirror.send(saving.final)

    def lowest_before(self, step: int) -> tuple[float, int] | None:
        """Return the lowest loss up to the checkpoint of a step, and its step: that state may lack its own loss."""
        try:
            found = json.loads((self.folder / BEST).read_text())
            recorded = float(found[self.best]), int(found["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.lowest
        if not math.isfinite(recorded[0]) or recorded[1] > step:
            return self.lowest
        return recorded if self.lowest is None else min(self.lowest, recorded)

    def record_best(self) -> None:
        """Write which checkpoint is the best one, if it is on the disk."""
        if self.lowest is not None and (self.folder / f"step_{self.lowest[1]:08d}").is_dir():
            found = {"step": self.lowest[1], self.best: self.lowest[0]}
            write_whole(self.folder / BEST, json.dumps(found).encode())

    def prune(self, trainer: lightning.Trainer) -> None:
        """Remove the old ones."""
        self.unproven = False
        if trainer.is_global_zero:
            prune(self.folder, self.keep, self.is_needed)
        if self.mirror is not None:
            self.mirror.prune()

    def is_kept(self, step: int) -> bool:
        """Return whether the checkpoint of a step is kept for another reason than its age."""
        often = self.keep_every is not None and step % self.keep_every == 0
        return often or (self.lowest is not None and step == self.lowest[1])

    def is_needed(self, step: int) -> bool:
        """Tell whether the checkpoint of a step is kept for good, or still to be copied to the store."""
        return self.is_kept(step) or (self.mirror is not None and self.mirror.needs(step))

    def state_dict(self) -> dict[str, Any]:
        return (
            {}
            if self.lowest is None
            else {"lowest": {"name": self.best, "loss": self.lowest[0], "step": self.lowest[1]}}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["lowest"]["name"] == self.best and math.isfinite(state["lowest"]["loss"]):
            self.lowest = state["lowest"]["loss"], state["lowest"]["step"]
