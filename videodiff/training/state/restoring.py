"""Resuming from a checkpoint: to the bit on as many processes as before, up to rounding on any other number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning
from torch import Tensor

from videodiff.parallel.engine import engine_of
from videodiff.parallel.ranks import gather
from videodiff.training.state.before import is_before_pieces, read_before
from videodiff.training.state.checkpoint import PROGRESS, STATE, of, read_record
from videodiff.training.state.generators import set_generators
from videodiff.training.state.pieces import RANDOM, SUFFIX, shapes_of
from videodiff.training.state.progress import read_progress, set_progress
from videodiff.training.state.saved import Saved
from videodiff.training.state.saving import name_of
from videodiff.training.state.verifying import verified


def restore(module: lightning.LightningModule, checkpoint: Path) -> None:
    """Restore a checkpoint in a training that is set up; every rank has to call."""
    trainer = module.trainer
    check_same(gather(trainer.world_size, checkpoint.name), checkpoint.parent)
    if trainer.world_size > 1:
        checkpoint = verified(trainer, checkpoint, module.fall_back)
    record = read_record(checkpoint)
    if is_before_pieces(checkpoint):
        saved, progress = read_before(checkpoint, module.names_in_order())
    else:
        saved, progress = Saved(files_of(checkpoint)), read_progress(checkpoint / STATE / PROGRESS)
    saved.check(shapes_of(module), checkpoint)
    set_progress(trainer, progress, checkpoint / STATE / PROGRESS)
    engine_of(trainer.strategy).load(module, saved)
    # Random states are restored if there are as many processes as before; only users' own code draws from them.
    if record["processes"] == trainer.world_size:
        path = checkpoint / STATE / f"{name_of(trainer.global_rank)}.{SUFFIX}"
        if states := random_of(saved, path):
            set_generators(states)


def check_same(names: Sequence[str], folder: Path) -> None:
    """Raise if the processes chose different checkpoints: each one looks for the newest by itself."""
    if len(set(names)) > 1:
        chosen = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(names[:8]))
        raise ValueError(
            f"{folder}: found other checkpoints on other ranks ({chosen}), expected one; the folder is not the same "
            "on all nodes yet: wait, or name it with checkpoint="
        )


def files_of(checkpoint: Path) -> list[Path]:
    """Return the files of a checkpoint that hold pieces of its state."""
    return [checkpoint / name for name in of(read_record(checkpoint)["files"], STATE) if name.endswith(f".{SUFFIX}")]


def random_of(saved: Saved, path: Path) -> dict[str, Tensor]:
    """Return the states of one rank's random generators; empty if the checkpoint has no file of this rank."""
    if (file := saved.files.get(path)) is None:
        return {}
    names = [name for name in file.keys() if name.startswith(RANDOM)]  # noqa: SIM118
    return {name.removeprefix(RANDOM): file.get_tensor(name) for name in names}
