"""Muon where every process holds rows of all matrices (FSDP2): each iterates some whole ones for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from videodiff.parallel.muon.division import held, rows
from videodiff.training.optimizer import Muon, step_along

T = TypeVar("T")


class ShardedMuon(Muon):
    """The optimizer `videodiff.training.optimizer.Muon` over matrices that are split by rows, with the same steps.

    Momenta and averages stay split. Each process iterates some of the matrices: one all-to-all brings it their rows
    from all processes, another one takes the rows of their steps back.
    """

    def replace(self, updates: list[Tensor]) -> None:
        """Iterate the matrices of this process, and exchange rows of updates for rows of steps."""
        group = updates[0].device_mesh.get_group()
        count, place = dist.get_world_size(group), dist.get_rank(group)
        indices = held([tuple(update.shape) for update in updates], count)
        parts = [update.to_local() for update in updates]
        gone = [[parts[index] for index in each] for each in indices]
        # For each matrix of this process, how many of its rows each process holds.
        heights = [rows(updates[index].shape[0], count) for index in indices[place]]
        widths = [updates[index].shape[1] for index in indices[place]]
        shapes = [list(zip(each, widths, strict=True)) for each in across(heights, count)]
        mine = [torch.cat(matrix) for matrix in across(exchange(gone, shapes, group, parts[0]), len(widths))]
        step_along(mine)
        back = across([step.split(each) for step, each in zip(mine, heights, strict=True)], count)
        steps = exchange(back, [[tuple(part.shape) for part in each] for each in gone], group, parts[0])
        for each, found in zip(indices, steps, strict=True):
            for index, step in zip(each, found, strict=True):
                updates[index] = like(step, updates[index])


def across(table: Sequence[Sequence[T]], columns: int) -> list[list[T]]:
    """Return the columns of a table, which may have no rows."""
    return [[row[column] for row in table] for column in range(columns)]


def exchange(
    sent: list[list[Tensor]], shapes: list[list[tuple[int, int]]], group: dist.ProcessGroup, kind: Tensor
) -> list[list[Tensor]]:
    """Send each process its tensors, and return those that each sends to this one.

    `shapes`: of those; `kind`: any tensor of their type, for a process may send nothing.
    """
    flat = torch.cat([kind.new_empty(0), *(part.reshape(-1) for each in sent for part in each)])
    lengths = [[height * width for height, width in each] for each in shapes]
    received = flat.new_empty(sum(map(sum, lengths)))
    dist.all_to_all_single(
        received, flat, [sum(each) for each in lengths], [sum(part.numel() for part in each) for each in sent], group
    )
    values = iter(received.split([length for each in lengths for length in each]))
    return [[next(values).view(shape) for shape in each] for each in shapes]


def like(part: Tensor, whole: DTensor) -> DTensor:
    """Return rows of this process as a tensor that is split as another one is."""
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
