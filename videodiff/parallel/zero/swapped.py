"""The fragments of one process under ZeRO 3 whose state is on a disk: a group of them is in memory at a time.

Outside a step DeepSpeed's flat tensors are empty, unless a group is so small that it stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from videodiff.parallel.zero.fragments import Partitions, forget_copies
from videodiff.training.state.pieces import AVERAGE, Piece, share
from videodiff.training.state.saved import Saved


class Swapped(Partitions):
    """The fragments of one process under ZeRO 3 with its state on a disk."""

    def pieces(self, values: Mapping[str, Tensor]) -> list[Piece]:
        """Return copies of the pieces: the memory that they lie in belongs to the next group a moment later."""
        found, alike = [], []
        for group, names in self.by_group(values).items():
            with self.in_memory(group):
                for name in names:
                    fragment = self.fragment(values[name])
                    if fragment is None:
                        alike += self.alike(name, values[name])
                    else:
                        found += copies(self.pieces_of(name, values[name], fragment))
        return found + copies(share(alike, torch.distributed.get_rank(), torch.distributed.get_world_size()))

    def load(self, values: Mapping[str, Tensor], saved: Saved) -> None:
        """Fill what this process holds and write it to the disk, one group at a time; then update the weights."""
        self.zero.checkpoint_event_prologue()
        forget_copies(values)
        for group, names in self.by_group(values).items():
            with self.in_memory(group, write=True):
                places: list[Piece] = []
                for name in names:
                    fragment, value = self.fragment(values[name]), values[name]
                    places += (
                        self.alike(name, value) if fragment is None else self.places_of(name, value, fragment, saved)
                    )
                saved.fill(places)
                if group is not None:
                    self.zero._reassign_or_swap_out_partitioned_parameters(group)
        self.zero.checkpoint_event_epilogue()

    def exchange(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exchange this process's parts for their averages; return copies of the weights, which are in memory."""
        weights: dict[str, Tensor] = {}
        for group, names in self.by_group(parameters).items():
            with self.in_memory(group):
                weights |= super().exchange({name: parameters[name] for name in names})
        return weights

    def averages(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Gather the averages of these parameters from all processes; None for a weight that no step has changed."""
        found: dict[str, Tensor | None] = {}
        for group, names in self.by_group(parameters).items():
            with self.in_memory(group):
                for name in names:
                    fragment, p = self.fragment(parameters[name]), parameters[name]
                    value = None if fragment is None else self.optimizer.state.get(fragment.flat, {}).get(AVERAGE)
                    if value is None:
                        found[name] = None
                    else:
                        # All processes have equally long parts; the last one's may be longer than its values.
                        part = value.detach()[fragment.offset : fragment.offset + p.partition_numel()]
                        found[name] = self.zero._fp32_state_allgather(p, part.to(p.device)).clone()
        return {name: found[name] for name in parameters}

    def by_group(self, values: Mapping[str, Tensor]) -> dict[int | None, list[str]]:
        """Return the names of parameters by the group in which they are swapped; None for what is not trained."""
        groups: dict[int | None, list[str]] = {}
        for name, value in values.items():
            trained = hasattr(value, "ds_id") and value.requires_grad
            group = self.zero.grad_position[self.zero.get_param_id(value)][0] if trained else None
            groups.setdefault(group, []).append(name)
        return groups

    @contextmanager
    def in_memory(self, group: int | None, write: bool = False) -> Iterator[None]:
        """Bring a group into memory; at the end release it, or write it back."""
        if group is None or not self.zero._swappable_optimizer_subgroup(group):
            yield
            return
        self.zero._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            (self.zero._optimizer_states_and_gradient_swap_out if write else self.zero._release_swap_buffers)(group)


def copies(pieces: Iterable[Piece]) -> list[Piece]:
    """Return pieces with values of their own."""
    return [piece._replace(values=piece.values.clone()) for piece in pieces]
