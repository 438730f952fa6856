"""What a Lightning strategy does in addition if neighbouring processes share clips."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from videodiff.parallel.sequence.group import SequenceGroup


class SharesClips:
    """A mix-in for strategies: forms the groups when the process group exists, and hands batches on within each."""

    sequence: SequenceGroup
    root_device: torch.device

    def setup(self, trainer: lightning.Trainer) -> None:
        """Form the groups, then set the strategy up."""
        self.sequence.join()
        super().setup(trainer)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Return the batch of the group's first rank; the other ranks read nothing."""
        if self.sequence.place == 0:
            batch = super().batch_to_device(batch, device, dataloader_idx)
        return batch if self.sequence.size == 1 else self.sequence.share(batch, device or self.root_device)
