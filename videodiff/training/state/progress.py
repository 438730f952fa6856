"""The progress of a training, beside weights and optimizer: loops, schedules, callbacks, data, as plain JSON values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import lightning

from videodiff.data.storage.files import inside
from videodiff.parallel.engine import engine_of

Progress = dict[str, Any]


def progress_of(trainer: lightning.Trainer) -> Progress:
    """Return the progress of a training as plain values; every rank has to call: the data gather from all."""
    found = {
        "global_step": trainer.global_step,
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "lr_schedulers": [{"last_epoch": one.scheduler.last_epoch} for one in trainer.lr_scheduler_configs],
        "callbacks": {one.state_key: state for one in trainer.callbacks if (state := one.state_dict())},
    }
    for part in parts_of(trainer):
        if state := part.state_dict():
            found[type(part).__qualname__] = state
    return plain(found, "progress")


def parts_of(trainer: lightning.Trainer) -> list[Any]:
    """Return the parts of a training that have a state of their own, which a checkpoint keeps under their class."""
    parts = [trainer.datamodule, trainer.precision_plugin, engine_of(trainer.strategy)]
    return [part for part in parts if part is not None]


def plain(value: Any, where: str) -> Any:
    """Return nested values as JSON has them; any other value is an error that names its place."""
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where}: found the key {strange[0]!r}, expected text: a checkpoint holds plain values")
        return {key: plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{where}.{count}") for count, inner in enumerate(value)]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral | Real):
        return int(value) if isinstance(value, Integral) else float(value)
    raise ValueError(f"{where}: found a {type(value).__name__}, expected plain values: a checkpoint holds nothing else")


def read_progress(path: Path) -> Progress:
    """Return the progress in a file."""
    try:
        found = json.loads(inside(path.parent, path.name).read_text())
        found["global_step"], found["loops"]["fit_loop"], found["callbacks"], found["lr_schedulers"][0]["last_epoch"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: found no readable progress of a training ({error}), expected it") from error
    return found


def set_progress(trainer: lightning.Trainer, progress: Progress, source: Path) -> None:
    """Restore the progress in a training that is set up: what Lightning restores from its own checkpoints.

    ValueError if the state of a part, read from the file `source`, is none that this part writes.
    """
    for part in parts_of(trainer):
        if (name := type(part).__qualname__) in progress:
            with taking(name, source):
                part.load_state_dict(progress[name])
    for callback in trainer.callbacks:
        if (name := callback.state_key) in progress["callbacks"]:
            with taking(name, source):
                callback.load_state_dict(progress["callbacks"][name])
    with taking("loops", source):
        trainer.fit_loop.load_state_dict(counted_anew(progress, trainer.accumulate_grad_batches))
    with taking("lr_schedulers", source):
        for one, state in zip(trainer.lr_scheduler_configs, progress["lr_schedulers"], strict=True):
            go_on(one.scheduler, state["last_epoch"])


@contextmanager
def taking(part: str, source: Path) -> Iterator[None]:
    """Name the file and the part of a state that has another form, as one in a stranger's file may have."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(f"{source}: {part}: found another form ({found}), expected what this part writes") from error


def counted_anew(progress: Progress, accumulate: int) -> dict[str, Any]:
    """Return the loop's state with micro-batches counted anew: the stream goes on at the first one of a step.

    The counts of the previous run do not fit: it may have had other micro-batches per step, or was cut inside a step.
    """
    loop = dict(progress["loops"]["fit_loop"])
    batches = dict(loop["epoch_loop.batch_progress"])
    for counted in ("total", "current"):
        batches[counted] = dict.fromkeys(batches[counted], progress["global_step"] * accumulate)
    return loop | {"epoch_loop.batch_progress": batches}


def go_on(scheduler: Any, step: int) -> None:
    """Set a schedule to a step; its values depend on the step alone, for any number of groups."""
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = rates
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
