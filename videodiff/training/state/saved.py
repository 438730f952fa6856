"""A saved state for reading: names, shapes and slices, whatever topology wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videodiff.training.state.pieces import RANDOM, WEIGHT, Piece
from videodiff.words import count_text

Shape = tuple[int, ...] | None
SHOWN = 4


class Stored(NamedTuple):
    """Where values are stored: `count` values of a tensor from index `start` on, under `name` in a file."""

    start: int
    count: int
    path: Path
    name: str


class Saved:
    """The pieces in the files of a state, indexed by the headers of the files; values are read on request.

    A process reads only the slices that it needs, so none has to hold the whole model to load its part.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.files: dict[Path, Any] = {}
        self.shapes: dict[tuple[str, str], Shape] = {}
        self.stored: dict[tuple[str, str], list[Stored]] = {}
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Read the header of one file."""
        try:
            file = self.files[path] = safe_open(path, "pt")
            # Its order differs between processes.
            for label, shape in sorted((file.metadata() or {}).items()):
                name, _, key = label.rpartition("|")
                whole = json.loads(shape)
                self.shapes[name, key] = None if whole is None else tuple(whole)
            for label in file.keys():  # noqa: SIM118
                if label.startswith(RANDOM):
                    continue
                name, key, start = label.rsplit("|", 2)
                (count,) = file.get_slice(label).get_shape()
                self.stored.setdefault((name, key), []).append(Stored(int(start), count, path, label))
        except (SafetensorError, ValueError, OSError) as error:
            raise ValueError(f"{path}: found no readable pieces of a state ({error}), expected some") from error

    def keys(self, name: str) -> dict[str, Shape]:
        """Return the keys of a parameter's optimizer state, with their shapes."""
        return {key: shape for (of, key), shape in self.shapes.items() if of == name and key != WEIGHT}

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all weights by name."""
        return {name: tuple(shape or ()) for (name, key), shape in self.shapes.items() if key == WEIGHT}

    def check(self, wanted: Mapping[str, tuple[int, ...]], where: Path) -> None:
        """Raise a one-line error if the saved weights do not fit the model."""
        if line := difference(self.weights(), wanted):
            raise ValueError(f"{where}: {line}; the checkpoint is of another model configuration")

    def check_complete(self) -> None:
        """Raise a one-line error if values of a tensor are in no file."""
        for (name, key), shape in self.shapes.items():
            self.slices(name, key, 0, 1 if shape is None else math.prod(shape))

    def slices(self, name: str, key: str, start: int, end: int) -> list[tuple[Stored, int, int]]:
        """Return where the values from `start` to `end` of a tensor are stored, in order."""
        found, missing = [], start
        for one in sorted(self.stored.get((name, key), ())):
            last = min(end, one.start + one.count)
            if one.start <= missing < last:
                found.append((one, missing, last))
                missing = last
        if missing < end:
            self.refuse(name, key, missing)
        return found

    def fill(self, places: Iterable[Piece]) -> None:
        """Write saved values into the memory of these pieces, converted to their type; a missing value is an error."""
        for place in places:
            for one, first, end in self.slices(place.name, place.key, place.start, place.end):
                values = self.files[one.path].get_slice(one.name)[first - one.start : end - one.start]
                with torch.no_grad():
                    place.values[first - place.start : end - place.start].copy_(values)

    def refuse(self, name: str, key: str, missing: int) -> None:
        """Raise a one-line error that names what is missing, and the files that were searched."""
        files = sorted({one.path.name for one in self.stored.get((name, key), ())} or {p.name for p in self.files})
        folder = next((str(path.parent) for path in self.files), "the state")
        many = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        raise ValueError(
            f"{folder}: {name}: found no value {missing:,} of {key!r} in {', '.join(files[:SHOWN])}{many}, expected "
            f"all values of shape {self.shapes.get((name, key))}"
        )

    def whole(self, name: str, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return one whole tensor."""
        values = torch.empty(self.shapes[name, key] or (), dtype=dtype)
        self.fill([Piece(name, key, 0, values.view(-1), tuple(values.shape))])
        return values

    def dtype(self, name: str, key: str) -> torch.dtype:
        """Return the type of the values."""
        one = self.stored[name, key][0]
        return self.files[one.path].get_slice(one.name)[:0].dtype

    def number(self, name: str, key: str) -> int | float:
        """Return a number of the optimizer's state."""
        (one, *_) = self.stored[name, key]
        return self.files[one.path].get_tensor(one.name).item()


def difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return one line that names the weights that differ, with their shapes; None if all agree."""
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        shapes = found.get(name), expected.get(name)
        if shapes[0] != shapes[1]:
            told = ["no such weight" if shape is None else f"shape {tuple(shape)}" for shape in shapes]
            lines.append(f"weight {name}: found {told[0]}, expected {told[1]}")
    left = len(lines) - SHOWN
    more = f"; {count_text(left, 'more weight differs', 'more weights differ')}" if left > 0 else ""
    return "; ".join(lines[:SHOWN]) + more if lines else None
