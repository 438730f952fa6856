"""Checkpoints: one folder a step, complete or absent.

    checkpoints/step_00000500/
        state.ckpt            everything that training needs to go on (a folder of shards under ZeRO)
        average.safetensors   the averaged weights by name: all that sampling needs, whatever the strategy was
        checkpoint.json       the step and the size of every file, written last

The folder is written under a temporary name and renamed when its last byte is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videodiff.data.files import sync
from videodiff.training.average import averages

AVERAGE = "average.safetensors"


def save_checkpoint(trainer: lightning.Trainer, folder: Path) -> Path:
    """Write the checkpoint of the current step; every rank has to call. Returns its folder."""
    final = folder / f"step_{trainer.global_step:08d}"
    partial = folder / f".{final.name}.partial"
    if trainer.is_global_zero:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    trainer.strategy.barrier("checkpoint folder")
    try:
        write_parts(trainer, partial)
        if trainer.is_global_zero:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            sync(folder)
    except OSError:
        # On a full disk a part of a checkpoint would only take the room that is needed.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    trainer.strategy.barrier("checkpoint written")
    return final


def write_parts(trainer: lightning.Trainer, folder: Path) -> None:
    """Write the files of a checkpoint, down to the disk; under ZeRO every rank writes its shard of the state."""
    average = averages(trainer.lightning_module, trainer.strategy.optimizers[0])
    trainer.save_checkpoint(folder / "state.ckpt")
    if trainer.is_global_zero:
        weights, path = {name: value.cpu().contiguous() for name, value in average.items()}, folder / AVERAGE
        try:
            save_file(weights, path)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        state = spread(trainer.strategy, trainer.world_size)
        record = {"version": 1, "step": trainer.global_step, "state": state, "files": files}
        (folder / "checkpoint.json").write_text(json.dumps(record, indent=1))
        for path in folder.rglob("*"):
            sync(path)


def spread(strategy: Any, world: int) -> str:
    """Return how the state of training is spread over files: whole, or by the ranks of a ZeRO stage."""
    stage = getattr(strategy, "stage", 0)
    return f"ZeRO {stage} over {world} processes" if stage else "whole"


def state_to_resume(checkpoint: Path, strategy: Any, world: int) -> Path:
    """Return the state of training in a checkpoint; it is an error if this strategy could not read it."""
    saved = json.loads((checkpoint / "checkpoint.json").read_text())["state"]
    if (here := spread(strategy, world)) != saved:
        raise ValueError(f"{checkpoint}: found the state of training {saved}, expected {here} as strategy= asks for")
    return checkpoint / "state.ckpt"


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def latest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run; it is an error if there is none, or if it is not whole."""
    found = checkpoints(run)
    if not found:
        raise FileNotFoundError(f"{run}: found no checkpoint, expected {run / 'checkpoints' / 'step_*'}")
    return whole(found[-1])


def whole(checkpoint: Path) -> Path:
    """Return the checkpoint if every file has the size its record gives, else raise."""
    try:
        files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint}: found no readable checkpoint.json ({error}), expected one") from error
    for name, size in files.items():
        path = checkpoint / name
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            raise ValueError(f"{path}: found {'no file' if there is None else f'{there} bytes'}, expected {size} bytes")
    return checkpoint


def load_average(checkpoint: Path, module: nn.Module) -> nn.Module:
    """Load the averaged weights into the trainable parameters of `module`; every name and shape must agree."""
    path = checkpoint / AVERAGE
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: found a damaged file ({error}), expected averaged weights") from error
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    check_names(path, saved, wanted)
    with torch.no_grad():
        for name, p in wanted.items():
            p.copy_(saved[name])
    return module


def check_names(path: Path, saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise one line where the weights in a file are not those of the model."""
    for name in sorted(saved.keys() | wanted.keys()):
        found, expected = saved.get(name), wanted.get(name)
        if found is None or expected is None or found.shape != expected.shape:
            shapes = ["no such weight" if v is None else f"shape {tuple(v.shape)}" for v in (found, expected)]
            raise ValueError(
                f"{path}: weight {name}: found {shapes[0]}, expected {shapes[1]}; the checkpoint is of another model "
                "configuration"
            )


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a folder (0: none) and what an interrupted save left."""
    for old in [*sorted(folder.glob("step_*"))[: -keep if keep else 0], *folder.glob(".step_*.partial")]:
        shutil.rmtree(old)
