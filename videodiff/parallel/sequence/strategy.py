"""What a strategy of Lightning does besides where neighbouring processes share clips."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from videodiff.parallel.sequence.group import SequenceGroup


class SharesClips:
    """Mixed into a strategy: forms the groups when the processes know each other, hands batches on in each."""

    sequence: SequenceGroup
    root_device: torch.device

    def setup(self, trainer: lightning.Trainer) -> None:
        """Form the groups, then go on as the strategy does."""
        self.sequence.join()
        super().setup(trainer)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Return the batch of the first rank of the group; the other ranks have read nothing."""
        if self.sequence.place == 0:
            batch = super().batch_to_device(batch, device, dataloader_idx)
        return batch if self.sequence.size == 1 else self.sequence.share(batch, device or self.root_device)
