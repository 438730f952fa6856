"""Muon for matrices that are split by rows: each process gathers a whole matrix and keeps its rows of the step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from videodiff.training.optimizer import Muon


class ShardedMuon(Muon):
    """The optimizer `videodiff.training.optimizer.Muon` over weights that are split by rows, with the same steps.

    Momenta and averages stay split. The updates of all matrices of one shape are whole at the same time, on all
    processes.
    """

    def _orthogonal(self, updates: Sequence[Tensor]) -> list[Tensor]:
        steps = super()._orthogonal([update.full_tensor() for update in updates])
        return [rows(step, update) for step, update in zip(steps, updates, strict=True)]


def rows(whole: Tensor, like: DTensor) -> Tensor:
    """Return whole values, which every process has, split like another tensor."""
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
