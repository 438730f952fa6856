"""Where ZeRO keeps the values of a parameter on this process: in flat tensors of many parameters, one per group.

This is the only file that reads the internals of DeepSpeed's two optimizers for checkpoints. Its own checkpoints fit
one topology, and its universal ones hold no average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videodiff.training.state.pieces import AVERAGE, STEP, WEIGHT, Piece, is_number, number, piece_of, share
from videodiff.training.state.saved import Saved

# The name of our Muon's momentum in DeepSpeed's Muon.
NAMES = {"momentum_buffer": "momentum"}


class Fragment(NamedTuple):
    """This process's part of a parameter: `count` values from `start` on, which lie at `offset` in a flat tensor."""

    start: int
    count: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return these values in a tensor with the layout of the flat one."""
        return tensor.detach()[self.offset : self.offset + self.count]


class Fragments:
    """The fragments of one process under ZeRO 1 and 2."""

    def __init__(self, optimizer: Any) -> None:
        self.zero, self.optimizer = optimizer, optimizer.optimizer

    def pieces(self, values: Mapping[str, Tensor]) -> list[Piece]:
        """Return the pieces of these parameters and buffers that this process must save."""
        found, alike = [], []
        for name, value in values.items():
            fragment = self.fragment(value)
            if fragment is None:
                alike += self.alike(name, value)
            else:
                found += self.pieces_of(name, value, fragment)
        return found + share(alike, torch.distributed.get_rank(), torch.distributed.get_world_size())

    def pieces_of(self, name: str, p: Tensor, fragment: Fragment) -> Iterator[Piece]:
        """Yield this process's part of the weight and the state of one parameter."""
        if not fragment.count:
            return
        shape = tuple(shape_of(p))
        yield Piece(name, WEIGHT, fragment.start, fragment.of(fragment.flat), shape)
        for key, value in self.optimizer.state.get(fragment.flat, {}).items():
            if is_number(key, value, shape_of(p)):
                # The process with the first value saves it for all.
                if fragment.start == 0:
                    yield number(name, key, value)
            else:
                values = fragment.of(value) if value.shape == fragment.flat.shape else self.own(p, fragment, value)
                yield Piece(name, NAMES.get(key, key), fragment.start, values, shape)

    def load(self, values: Mapping[str, Tensor], saved: Saved) -> None:
        """Fill what this process holds, then update the weights."""
        places: list[Piece] = []
        for name, value in values.items():
            fragment = self.fragment(value)
            places += self.alike(name, value) if fragment is None else self.places_of(name, value, fragment, saved)
        saved.fill(places)
        self.follow()

    def places_of(self, name: str, p: Tensor, fragment: Fragment, saved: Saved) -> Iterator[Piece]:
        """Yield where the saved values of one parameter belong; missing state is created."""
        if not fragment.count:
            return
        shape, state = tuple(shape_of(p)), self.optimizer.state[fragment.flat]
        yield Piece(name, WEIGHT, fragment.start, fragment.of(fragment.flat), shape)
        for key, whole in saved.keys(name).items():
            if whole is None:
                value = saved.number(name, key)
                state[key] = torch.tensor(float(value)) if key == STEP and not self.is_muon() else int(value)
            elif key == "momentum":
                yield self.momentum_place(name, p, fragment)
            else:
                if key not in state:
                    dtype = torch.float32 if key == AVERAGE else fragment.flat.dtype
                    state[key] = torch.zeros_like(fragment.flat, dtype=dtype, requires_grad=False)
                yield Piece(name, key, fragment.start, fragment.of(state[key]), shape)

    def is_muon(self) -> bool:
        """Return whether DeepSpeed's Muon takes the steps: it counts them in plain numbers, torch in tensors."""
        return any("use_muon" in group for group in self.optimizer.param_groups)

    def fragment(self, p: Tensor) -> Fragment | None:
        """Return this process's part of a parameter; None if all processes hold it whole."""
        if not p.requires_grad:
            return None
        mapping = p._hp_mapping
        if mapping is None:
            return Fragment(0, 0, p, 0)
        at, within = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return Fragment(at.start, at.numel, flat, within.start)

    def alike(self, name: str, value: Tensor) -> list[Piece]:
        """Return what is the same on all processes: buffers, and parameters that are not trained."""
        return [piece_of(name, WEIGHT, value)]

    def own(self, p: Tensor, fragment: Fragment, momenta: Tensor) -> Tensor:
        """Return this process's values of a momentum; DeepSpeed's Muon keeps momenta of whole matrices."""
        begin = self.momentum_offset(p) + fragment.start
        return momenta.detach()[begin : begin + fragment.count]

    def momentum_place(self, name: str, p: Tensor, fragment: Fragment) -> Piece:
        """Return where the momentum of a whole matrix belongs."""
        group = p._hp_mapping.param_group_index
        state, within = self.optimizer.state[fragment.flat], self.zero.params_in_partition[group]
        if "momentum_buffer" not in state:
            size = sum(one.numel() for one in within)
            state["momentum_buffer"] = torch.zeros(size, dtype=torch.float32, device=fragment.flat.device)
        begin = self.momentum_offset(p)
        return Piece(name, "momentum", 0, state["momentum_buffer"][begin : begin + p.numel()], tuple(p.shape))

    def momentum_offset(self, p: Tensor) -> int:
        """Return where the momentum of a matrix begins."""
        before = 0
        for one in self.zero.params_in_partition[p._hp_mapping.param_group_index]:
            if one is p:
                return before
            before += one.numel()
        raise ValueError(f"found no momentum of a matrix of shape {tuple(p.shape)} on this process, expected it")

    def follow(self) -> None:
        """Copy the flat tensors into the weights of all processes."""
        self.zero.update_lp_params()


class Partitions(Fragments):
    """The fragments of one process under ZeRO 3, which gives each process an equal part of each parameter."""

    def fragment(self, p: Tensor) -> Fragment | None:
        """Return this process's part of a parameter; None for a buffer, which all hold whole."""
        if not hasattr(p, "ds_id"):
            return None
        rank, size = self.zero._get_param_partition_rank(p), p.partition_numel()
        start = min(rank * size, p.ds_numel)
        count = min(size, p.ds_numel - start)
        if not p.requires_grad:
            return Fragment(start, count, p.ds_tensor.detach(), 0)
        group, offset, _ = self.zero.grad_position[self.zero.get_param_id(p)]
        return Fragment(start, count, self.zero.fp32_partitioned_groups_flat[group], offset)

    def momentum_place(self, name: str, p: Tensor, fragment: Fragment) -> Piece:
        """Return where this process's part of a momentum belongs."""
        state = self.optimizer.state[fragment.flat]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(fragment.flat, requires_grad=False)
        return Piece(name, "momentum", fragment.start, fragment.of(state["momentum_buffer"]), tuple(shape_of(p)))

    @torch.no_grad()
    def exchange(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write this process's parts of the averages into its parts of the weights; return copies of the latter.

        A weight without an average stays as it is. What fills up the last part is left alone.
        """
        weights: dict[str, Tensor] = {}
        for name, p in parameters.items():
            fragment = self.fragment(p)
            average = None if fragment is None else self.optimizer.state.get(fragment.flat, {}).get(AVERAGE)
            if average is not None:
                part = p.ds_tensor[: fragment.count]
                weights[name] = part.clone()
                part.copy_(fragment.of(average))
        return weights

    def load(self, values: Mapping[str, Tensor], saved: Saved) -> None:
        """Fill what this process holds, then update the weights; before, split small parameters that are kept whole."""
        self.zero.checkpoint_event_prologue()
        forget_copies(values)
        super().load(values, saved)

    def follow(self) -> None:
        """Copy the flat tensors into the weights, and make small parameters whole again."""
        for group in range(len(self.zero.fp32_partitioned_groups_flat)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        self.zero.checkpoint_event_epilogue()


def forget_copies(values: Mapping[str, Tensor]) -> None:
    """Forget second copies of weights (`zero_hpz_partition_size`): DeepSpeed keeps those of frozen weights for good."""
    for value in values.values():
        if hasattr(value, "ds_secondary_tensor"):
            value.ds_secondary_tensor = None


def shape_of(p: Tensor) -> torch.Size:
    """Return the shape of a whole parameter; ZeRO 3 empties a parameter and keeps its shape in `ds_shape`."""
    return getattr(p, "ds_shape", p.shape)
