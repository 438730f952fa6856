"""State and tensors as files: streamed to the disk with a checksum; reading them runs no code from the file."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videodiff.data.storage.causes import first_line
from videodiff.data.storage.files import Hashed

# The names of types in the safetensors format.
TYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
}


class Written(NamedTuple):
    """A file as it was written."""

    bytes: int
    sha256: str


class Entry(NamedTuple):
    """A tensor to write in the safetensors format; its values are requested when it is written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        """Return the entry of a tensor that exists already."""
        return cls(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


@contextmanager
def streaming(path: Path) -> Iterator[Hashed]:
    """Open a new file for a checkpoint; at the end it is on the disk. An error of the disk names it."""
    try:
        with closing(Hashed(path)) as file:
            yield file
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise if a tensor holds a value that is not finite."""
    if (bad := not_finite(tensors)) is not None:
        raise ValueError(f"{path}: {bad}: found values that are not finite, expected numbers: not saved")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that is not finite, None if all are finite."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def load_state(path: Path) -> Any:
    """Read plain values and tensors; anything else is an error and is not executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        reason = reason or first_line(error)
        raise ValueError(
            f"{path}: found something else than the state of a training ({reason[:200]}), expected plain values and "
            "tensors; nothing of it was run"
        ) from error


def write_entries(entries: Iterable[Entry], path: Path, notes: dict[str, str] | None = None) -> Written:
    """Write tensors in the safetensors format one after the other, with notes in the header."""
    header, offset, entries = {"__metadata__": notes} if notes else {}, 0, sorted(entries)
    for name, dtype, shape, _ in entries:
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with streaming(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for entry in entries:
            flat = entry.read().detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                file.write(memoryview(flat.view(torch.uint8).numpy()))
    return Written(file.size, file.digest.hexdigest())
