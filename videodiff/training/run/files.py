"""State and tensors as files: streamed to the disk with their checksum, read back without running code of theirs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor

from videodiff.data.storage.files import Hashed

# What safetensors call the types that averages have.
TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


class Written(NamedTuple):
    """A file as it was written."""

    bytes: int
    sha256: str


class StateWriter:
    """Who writes the files of a checkpoint on one rank.

    After the first error nothing is written and nothing raised: the other ranks would wait for this one for ever. It is
    told with what was written, when all have come so far.
    """

    def __init__(self) -> None:
        self.written: dict[Path, Written] = {}
        self.problem: Exception | None = None

    def write(self, state: Any, path: Path, how: Callable[[Any, Path], Written] | None = None) -> None:
        """Write a file, by default as torch does, unless an error came before."""
        if self.problem is None:
            try:
                self.written[path] = (how or write_state)(state, path)
            except (OSError, ValueError) as error:
                self.problem = error

    def take(self) -> tuple[Exception | None, dict[Path, Written]]:
        """Return the first error and what was written, and forget both."""
        found = self.problem, self.written
        self.problem, self.written = None, {}
        return found


class StateFile(CheckpointIO, StateWriter):
    """How Lightning writes and reads a state of training that is whole: into its place, without running code of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the state."""
        self.write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read plain values and tensors; anything else is an error."""
        return load_state(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


@contextmanager
def streaming(path: Path) -> Iterator[Hashed]:
    """Open a new file for a checkpoint; an error of the disk names it."""
    file = None
    try:
        with path.open("xb") as raw:
            file = Hashed(raw)
            yield file
            raw.flush()
            os.fsync(raw.fileno())
    except (OSError, RuntimeError) as error:
        # torch wraps the error of a file that it writes to.
        cause = file.error if file is not None and file.error is not None else error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def write_state(state: Any, path: Path) -> Written:
    """Write plain values and tensors as torch does, tensor by tensor; ValueError where a tensor is not finite."""
    refuse_not_finite(state, path)
    with streaming(path) as file:
        torch.save(state, file)
    return Written(file.size, file.digest.hexdigest())


def refuse_not_finite(state: Any, path: Path) -> None:
    """Raise where a tensor of floating-point numbers holds something else than numbers."""
    if (bad := not_finite(state)) is not None:
        raise ValueError(f"{path}: {bad}: found values that are not finite, expected numbers: not saved")


def not_finite(value: Any, where: str = "state") -> str | None:
    """Return where in nested values the first tensor lies that is not finite, None where all are."""
    if isinstance(value, Tensor):
        fine = not value.is_floating_point() or not value.numel() or bool(value.isfinite().all())
        return None if fine else where
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = (not_finite(inner, f"{where}.{key}") for key, inner in pairs)
    return next((bad for bad in found if bad is not None), None)


def load_state(path: Path, map_location: Any = "cpu", classes: Sequence[type] = ()) -> Any:
    """Read plain values and tensors, and objects of these classes; anything else is an error, and is not run."""
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: found something else than the state of a training ({reason[:200]}), expected plain values and "
            "tensors; nothing of it was run"
        ) from error


def write_tensors(tensors: dict[str, Tensor], path: Path) -> Written:
    """Write tensors in the format safetensors, one after the other; ValueError where one is not finite."""
    refuse_not_finite(tensors, path)
    header, offset = {}, 0
    for name, tensor in sorted(tensors.items()):
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with streaming(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in sorted(tensors.items()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                file.write(memoryview(flat.view(torch.uint8).numpy()))
    return Written(file.size, file.digest.hexdigest())
