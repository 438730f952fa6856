"""What to change where a training runs out of memory: overrides that take less and leave its result as it is."""

from __future__ import annotations

MOST = 3


def remedies(micro_batch: int, recompute: str, strategy: str, world: int, sequence: int) -> list[str]:
    """Return up to three overrides that are not in use yet, the one that costs least time first.

    `micro_batch`: clips of a process at once; `recompute`: none, selective or full; `strategy`: the name of an option
    of conf/strategy; `world`: processes; `sequence`: how many of them share each clip.
    """
    found = []
    if recompute == "none":
        found.append("recompute=selective")
    if micro_batch > 1:
        found.append(f"data.micro_batch={largest_divisor(micro_batch)}")
    if recompute != "full":
        found.append("recompute=full")
    if world > 1 and not strategy.startswith(("zero2", "zero3", "fsdp2")):
        found.append("strategy=zero2")
    if world > 1 and not strategy.startswith(("zero3", "fsdp2")):
        found.append("strategy=zero3")
    if sequence < world:
        share = next(n for n in range(sequence + 1, world + 1) if world % n == 0)
        found.append(f"strategy.sequence_parallel={share}")
    return found[:MOST]


def largest_divisor(number: int) -> int:
    """Return the largest divisor of a number that is smaller than it."""
    return number // next(n for n in range(2, number + 1) if number % n == 0)
