"""The state of training as flat pieces: each process states which values it holds, under every strategy.

A piece is a range of consecutive values of one flattened tensor. The pieces of all processes together are the weights
and the optimizer's state. Their names do not depend on the topology: another number of processes, or another strategy,
reads the slices that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

WEIGHT, AVERAGE, STEP = "weight", "ema", "step"
# The extension of files of pieces.
SUFFIX = "safetensors"
# The prefix of the names of random generators' states; they lie beside the pieces in a file.
RANDOM = "random|"
# Pieces with fewer values are not divided further.
SMALL = 1024


class Piece(NamedTuple):
    """Values of one flattened tensor on this process; `values` share the memory that training uses.

    `key` is WEIGHT or a key of the optimizer's state. `shape` is the shape of the whole tensor, None for a number that
    an optimizer keeps beside the tensors, such as its count of steps.
    """

    name: str
    key: str
    start: int
    values: Tensor
    shape: tuple[int, ...] | None

    @property
    def end(self) -> int:
        """The index after the last value."""
        return self.start + self.values.numel()


def piece_of(name: str, key: str, tensor: Tensor) -> Piece:
    """Return the piece that this process holds: the whole tensor, or its rows if a DTensor is sharded by rows."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return Piece(name, key, 0, flat(tensor), tuple(tensor.shape))
    local = tensor.to_local()
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if any(offsets[1:]) or (local.numel() and tuple(local.shape[1:]) != tuple(tensor.shape[1:])):
        raise ValueError(f"{name}: found a tensor with placements {tensor.placements}, expected it sharded by rows")
    row = tensor[:1].numel() if tensor.ndim else 1
    return Piece(name, key, (offsets[0] if offsets else 0) * row, flat(local), tuple(tensor.shape))


def flat(tensor: Tensor) -> Tensor:
    """Return a tensor as one row that shares its memory."""
    return tensor.view(-1)


def number(name: str, key: str, value: Any) -> Piece:
    """Return a number of the optimizer's state as a piece."""
    return Piece(name, key, 0, torch.as_tensor(value).detach().reshape(1), None)


def is_number(key: str, value: Any, shape: torch.Size) -> bool:
    """Return whether this entry of an optimizer's state is a number, not a tensor with a value per weight."""
    return not isinstance(value, Tensor) or (value.ndim == 0 and (len(shape) > 0 or key.endswith(STEP)))


def state_pieces(name: str, p: Tensor, state: dict[str, Any]) -> Iterator[Piece]:
    """Yield the pieces of one parameter's optimizer state; its tensors are laid out like the parameter."""
    for key, value in state.items():
        if is_number(key, value, p.shape):
            yield number(name, key, value)
        elif value.shape == p.shape:
            yield piece_of(name, key, value)
        else:
            raise ValueError(
                f"{name}: found state {key!r} of shape {tuple(value.shape)} in the optimizer, expected a number or "
                f"shape {tuple(p.shape)}; checkpoints cannot hold it"
            )


def share(pieces: Iterable[Piece], copy: int, copies: int) -> list[Piece]:
    """Return what one of several processes that hold the same pieces must write; together they write each value once.

    A large piece is cut into equal parts; small pieces are dealt out in turn, in the same order on all processes.
    """
    mine = []
    for count, piece in enumerate(sorted(pieces, key=lambda piece: (piece.name, piece.key, piece.start))):
        n = piece.values.numel()
        if n < SMALL * copies:
            if count % copies == copy:
                mine.append(piece)
        else:
            first, end = n * copy // copies, n * (copy + 1) // copies
            mine.append(piece._replace(start=piece.start + first, values=piece.values[first:end]))
    return mine


def label(piece: Piece) -> str:
    """Return the name of a piece in a file."""
    return f"{piece.name}|{piece.key}|{piece.start}"


def notes(pieces: Iterable[Piece]) -> dict[str, str]:
    """Return the notes for the header of a file: the shapes of the whole tensors."""
    return {f"{piece.name}|{piece.key}": json.dumps(piece.shape) for piece in pieces}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the full shapes, by name, of all weights and buffers in a checkpoint of this module."""
    return {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in kept(module).items()}


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a module by name; under ZeRO 3 parameters are empty."""
    return module.state_dict(keep_vars=True)
