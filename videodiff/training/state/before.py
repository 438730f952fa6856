"""Reads states of versions 1 and 2: one torch file with all weights, and the optimizer's state by parameter index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videodiff.training.state.checkpoint import OLD_STATE, CheckpointError, read_record
from videodiff.training.state.files import load_state
from videodiff.training.state.pieces import WEIGHT, Piece, is_number
from videodiff.training.state.saved import Saved

FIRST_WITH_PIECES = 3


class Before(Saved):
    """A state that one process wrote whole; `names` are the names of the optimizer's parameters, in order."""

    def __init__(self, state: dict[str, Any], names: Sequence[str]) -> None:
        super().__init__(())
        weights = state["state_dict"]
        self.values: dict[tuple[str, str], Tensor] = {(name, WEIGHT): value for name, value in weights.items()}
        self.numbers: dict[tuple[str, str], int | float] = {}
        for number, kept in state["optimizer_states"][0]["state"].items():
            for key, value in kept.items():
                if is_number(key, value, weights[names[number]].shape):
                    self.numbers[names[number], key] = value.item() if isinstance(value, Tensor) else value
                else:
                    self.values[names[number], key] = value
        self.shapes = {place: tuple(value.shape) for place, value in self.values.items()} | dict.fromkeys(self.numbers)

    def fill(self, places: Iterable[Piece]) -> None:
        """Write saved values into the memory of these pieces."""
        for place in places:
            with torch.no_grad():
                place.values.copy_(self.values[place.name, place.key].reshape(-1)[place.start : place.end])

    def number(self, name: str, key: str) -> int | float:
        """Return a number of the optimizer's state."""
        return self.numbers[name, key]


def is_before_pieces(checkpoint: Path) -> bool:
    """Return whether a checkpoint has a state of version 1 or 2; raise if it is one that can no longer be read."""
    record = read_record(checkpoint)
    if record["version"] >= FIRST_WITH_PIECES:
        return False
    if record["state"] != "whole":
        raise CheckpointError(
            f"{checkpoint}: found the state of {record['state']} in version {record['version']}, expected version "
            f"{FIRST_WITH_PIECES}; sample and evaluate take its average, and the videodiff that wrote it "
            "(environment.json beside it) can continue its training"
        )
    return True


def read_before(checkpoint: Path, names: Sequence[str]) -> tuple[Before, dict[str, Any]]:
    """Return the values of a state of version 1 or 2, and its progress."""
    state = load_state(checkpoint / OLD_STATE)
    try:
        return Before(state, names), {key: value for key, value in state.items() if "state" not in key}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{checkpoint / OLD_STATE}: found no state of a training ({error!r}), expected one") from error
