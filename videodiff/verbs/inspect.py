"""videodiff inspect: what is in a dataset, a run or a checkpoint."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

from omegaconf import DictConfig
from safetensors import safe_open

from videodiff.data.inspection import describe_dataset, format_description
from videodiff.training.checkpoint import checkpoints, whole
from videodiff.verbs.build import read_run


def run(cfg: DictConfig) -> None:
    """Tell by what the folder holds which of the three it is."""
    path = Path(cfg.folder)
    if not path.is_dir():
        raise FileNotFoundError(f"folder: found no {path}, expected a dataset, a run or a checkpoint")
    if (path / "checkpoint.json").exists():
        text = describe_checkpoint(path)
    elif (path / "config.yaml").exists():
        text = describe_run(path)
    else:
        text = format_description(describe_dataset(path))
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever reads only the head of it needs no error, nor a second one when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_run(run: Path) -> str:
    """Return the recipe of a run in a few lines, and its checkpoints."""
    cfg = read_run(run)
    lines = [f"run         {run}", f"command     {(run / 'command.txt').read_text().strip()}"]
    lines += [f"{key:<12}{cfg[key]._target_}" for key in ("model", "path", "objective", "codec", "text", "optimizer")]
    lines += [f"data        {cfg.data.root}: {cfg.data.frames} frames of {cfg.data.height} x {cfg.data.width}"]
    return "\n".join([*lines, *(describe_checkpoint(found) for found in checkpoints(run))])


def describe_checkpoint(checkpoint: Path) -> str:
    """Return the step, size and parameters of a checkpoint; it is an error if it is not whole."""
    whole(checkpoint)
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    with safe_open(checkpoint / "average.safetensors", "pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    count = sum(math.prod(shape) for shape in sizes.values())
    size = sum(record["files"].values())
    return f"checkpoint  {checkpoint}: step {record['step']}, {count:,} parameters, {size / 2**20:.1f} MiB, whole"
