"""What this process's device can do, and how much memory is in use at most."""

from __future__ import annotations

import resource
import time

import torch

from videodiff.planning.peaks import peak_of

SIDE, ROUNDS = 768, 4
# The types of 16 bits by the beginning of a precision of Lightning's, such as bf16-mixed.
HALF = {"bf16": torch.bfloat16, "16": torch.float16}


def half_type(precision: str) -> torch.dtype | None:
    """Return the type of 16 bits that a precision of Lightning's computes in; None for one of 32 or 64 bits."""
    return HALF.get(precision.partition("-")[0])


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return FLOPs a second at most: a card's by its data sheet, a CPU's as measured now; None where it is not known.

    `precision` is Lightning's. On a CPU the fastest of some matrix products tells what all its threads reach.
    """
    half = half_type(precision) is not None
    if device.type == "cuda":
        return peak_of(torch.cuda.get_device_name(device), half)
    if device.type != "cpu":
        return None
    a = torch.full((SIDE, SIDE), 0.5, dtype=torch.bfloat16 if half else torch.float32)
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - begun)
    return 2 * SIDE**3 / best


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory that was in use at once: of the card, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
