"""The whole state in a checkpoint, whichever topology wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from videodiff.training.state.restoring import files_of
from videodiff.training.state.saved import Saved


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return all weights, and the tensors and numbers of the optimizer's state, as `<name> <key>`."""
    saved, found = Saved(files_of(checkpoint)), {}
    for (name, key), shape in saved.shapes.items():
        value = saved.number(name, key) if shape is None else saved.whole(name, key)
        found[f"{name} {key}"] = torch.as_tensor(value)
    return found


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights by name."""
    found = tensors_of(checkpoint).items()
    return {name.removesuffix(" weight"): value for name, value in found if name.endswith(" weight")}


def assert_same_bits(one: Path, other: Path) -> None:
    """Compare all weights, and all of the optimizer's state."""
    wanted, found = tensors_of(one), tensors_of(other)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def progress_in(checkpoint: Path) -> dict[str, Any]:
    """Return the progress of the training."""
    return json.loads((checkpoint / "state/progress.json").read_text())
