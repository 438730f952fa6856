"""The validations of a run: when one is due, and that a resume makes up the one that a signal or a kill cut off."""

from __future__ import annotations

import json
from pathlib import Path

import lightning

from videodiff.data.storage.files import write_whole

RECORD = "validated.json"


def is_due(trainer: lightning.Trainer) -> bool:
    """Return whether a validation follows the step that has just ended."""
    taken = trainer.global_step * trainer.accumulate_grad_batches
    return bool(trainer.limit_val_batches) and taken % trainer.val_check_batch == 0


def note(trainer: lightning.Trainer) -> None:
    """Record in the run folder that the validation of this step has ended."""
    if trainer.is_global_zero and not trainer.sanity_checking:
        write_whole(Path(trainer.default_root_dir, RECORD), json.dumps({"step": trainer.global_step}).encode())


def make_up(trainer: lightning.Trainer) -> None:
    """Validate first if it was due at the step of the checkpoint and has not ended: that step is not taken again."""
    done = trainer.is_global_zero and last(Path(trainer.default_root_dir)) >= trainer.global_step
    if not trainer.global_step or not is_due(trainer) or trainer.strategy.broadcast(done):
        return
    loop = trainer.fit_loop.epoch_loop.val_loop
    # The state of the loop is that of another validation.
    loop.restarting, trainer.validating = False, True
    loop.run()
    trainer.training = True


def last(run: Path) -> int:
    """Return the step of the last validation that has ended, 0 if no record can be read."""
    try:
        return int(json.loads((run / RECORD).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
