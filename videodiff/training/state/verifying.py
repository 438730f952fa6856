"""Verify the checkpoint that several processes resume from: each reads a share of its files, and all agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning

from videodiff.parallel.ranks import gather
from videodiff.printing import say
from videodiff.training.state.checkpoint import (
    AVERAGE,
    STATE,
    CheckpointError,
    checkpoints,
    of,
    problem_of,
    read_record,
    step_of,
    whole,
)
from videodiff.training.state.files import Written
from videodiff.words import count_text


def verified(trainer: lightning.Trainer, checkpoint: Path, fall_back: Callable[[Path], None] | None) -> Path:
    """Return the checkpoint to resume from: this one, else the newest before it whose state is whole.

    Every rank has to call. `fall_back` is called with an older one; without it a damaged checkpoint is an error.
    """
    world, first = trainer.world_size, trainer.is_global_zero
    while (problem := damage(checkpoint, trainer.global_rank, world, first)) is not None:
        if fall_back is None:
            raise CheckpointError(problem)
        older = gather(world, before(checkpoint) if first else None)[0]
        if older is None:
            raise CheckpointError(f"{problem}; no other checkpoint of {checkpoint.parent.parent} is whole")
        if first:
            lost = step_of(checkpoint) - step_of(older)
            say(f"{problem}; going on from {older.name}: {count_text(lost, 'step is', 'steps are')} lost")
        checkpoint = checkpoint.with_name(older.name)
        fall_back(checkpoint)
    return checkpoint


def damage(checkpoint: Path, rank: int, world: int, first: bool = False) -> str | None:
    """Return the fault of a checkpoint's state, the same on all ranks; report a damaged average."""
    files = read_record(checkpoint)["files"]
    own = share_of(files, rank, world)
    problems = {name: problem for name in own if (problem := problem_of(checkpoint, name, files[name]))}
    found = {name: problem for part in gather(world, problems) for name, problem in part.items()}
    if first and AVERAGE in found:
        say(f"{found[AVERAGE]}; training does not read it")
    return next((found[name] for name in of(found, STATE)), None)


def share_of(files: Mapping[str, Written], rank: int, world: int) -> list[str]:
    """Return the names of the files that a rank reads: each file by one rank, about equal bytes each."""
    held, shares = [0] * world, [[] for _ in range(world)]
    for name in sorted(files, key=lambda name: (-files[name].bytes, name)):
        least = held.index(min(held))
        held[least] += files[name].bytes
        shares[least].append(name)
    return shares[rank]


def before(checkpoint: Path) -> Path | None:
    """Return the newest checkpoint before this one whose files have their sizes, or None."""
    for one in reversed(checkpoints(checkpoint.parent.parent)):
        if step_of(one) < step_of(checkpoint):
            try:
                return whole(one, STATE, hashed=False)
            except CheckpointError as error:
                say(f"{error}; training does not resume from it")
    return None
