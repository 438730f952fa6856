"""From the host to the device without a wait."""

from __future__ import annotations

import torch
from torch import Tensor


def send(host: Tensor, device: torch.device | str) -> Tensor:
    """Copy a small tensor of the host to a device.

    The copy from pinned memory is queued behind the work of the device; one from any other memory would wait for it.
    """
    if torch.device(device).type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
