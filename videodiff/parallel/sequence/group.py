"""The neighbouring processes that share clips: which they are, and how all of them get the same batch.

The first rank of a group reads for all of it and hands its batches on. So a clip is decoded once, and a clip that one
process could not read in time cannot become two different clips in one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SequenceGroup:
    """This process's place among `size` consecutive ranks that share clips; known once `join` has been called."""

    def __init__(self, size: int = 1) -> None:
        self.size, self.place = size, 0
        self.ranks: list[int] = []
        # Tensors on a device travel by `group`, host tensors by `host`, which waits for no device.
        self.group: dist.ProcessGroup | None = None
        self.host: dist.ProcessGroup | None = None

    def join(self) -> None:
        """Form the groups of all processes, when the process group exists; every rank has to call."""
        if self.size == 1:
            return
        on_device = dist.get_backend() != "gloo"
        for first in range(0, dist.get_world_size(), self.size):
            ranks = list(range(first, first + self.size))
            group = dist.new_group(ranks)
            host = dist.new_group(ranks, backend="gloo") if on_device else group
            if dist.get_rank() in ranks:
                self.ranks, self.group, self.host = ranks, group, host
                self.place = ranks.index(dist.get_rank())

    def share(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the batch of the first rank on every rank of the group: its tensors on this rank's device or host."""
        told: list[Any] = [None]
        if self.place == 0:
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            kinds = {name: (value.dtype, value.shape, value.device.type) for name, value in tensors.items()}
            told = [({name: value for name, value in batch.items() if name not in tensors}, kinds)]
        dist.broadcast_object_list(told, src=self.ranks[0], group=self.host)
        rest, kinds = told[0]
        shared = {name: self.hand_on(batch.get(name), device, *kind) for name, kind in kinds.items()}
        return {**rest, **shared}

    def hand_on(
        self, value: Tensor | None, device: torch.device, dtype: torch.dtype, shape: torch.Size, where: str
    ) -> Tensor:
        """Return a tensor of the first rank on every rank; it travels as bytes, as gloo does not know every type."""
        group = self.host if where == "cpu" else self.group
        if self.place == 0:
            dist.broadcast(value.contiguous().flatten().view(torch.uint8), src=self.ranks[0], group=group)
            return value
        made = torch.empty(shape, dtype=dtype, device="cpu" if where == "cpu" else device)
        dist.broadcast(made.view(-1).view(torch.uint8), src=self.ranks[0], group=group)
        return made


def shares(count: int, parts: int) -> list[int]:
    """Return how many of `count` things each of `parts` processes holds: as even as can be, the first ones more."""
    return [count // parts + (part < count % parts) for part in range(parts)]
