"""Muon where every process holds all matrices (DDP): each iterates some of them, and all get all steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from videodiff.parallel.muon.division import held, worth_sharing
from videodiff.training.optimizer import Muon, step_along


class SharedMuon(Muon):
    """The optimizer `videodiff.training.optimizer.Muon`, its iteration shared by `processes` consecutive ranks.

    These are the processes of a node, for the steps of all matrices go from each to each, once a step. Gradients must
    be equal on all of them, as they are under DDP. Weights and state are those of one process, to the bit.
    """

    def __init__(self, *arguments: Any, processes: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        alone = processes == dist.get_world_size()
        self.sharing = dist.group.WORLD if alone else dist.new_subgroups(processes)[0]

    def replace(self, updates: list[Tensor]) -> None:
        """Iterate the matrices of this process, and gather the steps of all; few small matrices each process iterates.

        Each part of the gathered steps is as long as the longest: a gather of equal parts is one ring.
        """
        shapes, count = [tuple(update.shape) for update in updates], dist.get_world_size(self.sharing)
        if not worth_sharing(shapes, count):
            step_along(updates)
            return
        place, indices = dist.get_rank(self.sharing), held(shapes, count)
        mine, kind = [updates[index] for index in indices[place]], updates[0].new_empty(0)
        # The others' are not needed any more.
        updates.clear()
        step_along(mine)
        sizes = [[shapes[index][0] * shapes[index][1] for index in each] for each in indices]
        steps = kind.new_empty(count, max(map(sum, sizes)))
        if mine:
            torch._foreach_copy_(parts(steps[place], sizes[place]), [step.view(-1) for step in mine])
        dist.all_gather_single(steps.view(-1), steps[place], group=self.sharing)
        found = {}
        for each, lengths, row in zip(indices, sizes, steps, strict=True):
            found |= zip(each, parts(row, lengths), strict=True)
        updates.extend(found[index].view(shape) for index, shape in enumerate(shapes))


def parts(row: Tensor, lengths: list[int]) -> list[Tensor]:
    """Return the first values of a row in parts of these lengths."""
    return list(row[: sum(lengths)].split(lengths))
