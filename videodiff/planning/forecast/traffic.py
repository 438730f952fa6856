"""The bytes that a process sends in an optimizer step: gradients and weights of a strategy, tokens at the axis switch.

Collectives run in rings. In an all-reduce each process sends (n - 1) / n of the bytes twice: once to sum the parts and
once to spread the sums. A reduce-scatter or an all-gather sends them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from videodiff.planning.forecast.memory import Setting
from videodiff.planning.forecast.trace import Weights

# The axis that is split over the processes while a block attends along the key; a spacetime block accepts either.
SHARED = {"space": "frames", "time": "positions"}

# The longest matrix of a block by the mean: four squares of the width by 16 / 7 of them.
LONGEST = 7 / 4


class Sent(NamedTuple):
    """Bytes that a process sends in a step, and the number of collectives.

    gradients, weights: sent by the strategy; tokens: sent between processes that share a clip; updates: sent between
    processes that share Muon's iteration.
    """

    gradients: float
    weights: float
    tokens: float
    collectives: float
    updates: float = 0.0

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.gradients + self.weights + self.tokens + self.updates


def ring(size: float, processes: int) -> float:
    """Return the bytes that a process sends in an all-gather or a reduce-scatter of `size` bytes."""
    return size * (processes - 1) / processes


def of_state(setting: Setting, weights: Weights, blocks: int, forwards: float = 0.0) -> Sent:
    """Return what a process sends in a step of a strategy, with `forwards` more passes that have no gradient.

    ZeRO 1 and 2 sum whole gradients in every process, though each keeps a part only; ZeRO 1 sums once a step.
    """
    part, again = ring(setting.weight * weights.all, setting.world), setting.accumulate
    if setting.strategy == "single" or setting.world == 1:
        return Sent(0.0, 0.0, 0.0, 0)
    if setting.strategy == "ddp":
        updates = of_updates(setting, weights)
        return Sent(2 * part, 0.0, 0.0, blocks + (updates > 0), updates)
    if setting.strategy == "zero1":
        return Sent(2 * part, part, 0.0, 2 * blocks)
    updates = of_updates(setting, weights)
    if setting.strategy.startswith("zero2"):
        return Sent(2 * again * part, part, 0.0, (again + 1) * blocks, updates)
    gathered = ring(setting.weight * gathers(setting, weights, forwards), setting.world)
    collectives = round((3 + forwards) * again * blocks) + 2 * (updates > 0)
    # For Muon ZeRO 3 sums whole gradients in every process.
    sums = 2 if setting.zero and setting.muon else 1
    return Sent(sums * again * part, gathered, 0.0, collectives, updates)


def of_updates(setting: Setting, weights: Weights) -> float:
    """Return what a process sends so that Muon iterates each matrix once among those that share the iteration.

    Where each has everything, its part of all steps goes to the others. Where each has rows, they go to who iterates
    their matrix, and come back. ZeRO 3 gathers gradients and momenta everywhere, and so does an offloaded state; then
    steps and momenta go to all, as many matrices at a time as there are processes, each as long as the longest.
    """
    if not setting.muon:
        return 0.0
    both = ring(8.0 * weights.matrices, setting.world)
    if setting.offloaded:
        return both
    if setting.strategy == "zero3":
        return both * (1 + LONGEST - (LONGEST - 1) / setting.world)
    if setting.zero:
        return 0.0
    sharing, size = setting.sharing(weights.orthogonal), 4.0 * weights.matrices
    return ring(size, sharing) if setting.strategy == "ddp" else 2 * ring(size / sharing, sharing)


def gathers(setting: Setting, weights: Weights, forwards: float) -> float:
    """Return how many weights become whole in a step where they are split.

    They are gathered for the forward pass and again for the backward pass. ZeRO 3 keeps the last ones in between, whose
    next use is near; small ones are always whole, and are gathered once, after the step.
    """
    again = setting.accumulate
    if not setting.zero:
        return (2 + forwards) * again * (weights.all + weights.frozen)
    split = weights.all + weights.frozen - weights.small
    # On the way to its next use, each weight after it is met twice.
    twice = max(0.0, split - setting.reuse / 2)
    return weights.small + again * ((1 + forwards) * split + twice)


def switches(axes: Sequence[str]) -> int:
    """Return how often the split axis changes on the way through the blocks; frames are split first."""
    shared, count = "frames", 0
    for axis in axes:
        wanted = SHARED.get(axis, shared)
        count += wanted != shared
        shared = wanted
    return count


def of_tokens(axes: Sequence[str], tokens: float, width: int, patch: int, group: int, number: int) -> Sent:
    """Return the tokens that a process sends in both passes, at `number` bytes a number.

    A spacetime block sends queries, keys and values before attention, and its result after it.
    """
    if group == 1:
        return Sent(0.0, 0.0, 0.0, 0)
    both = sum(axis not in SHARED for axis in axes)
    exchanged = (switches(axes) + 4 * both) * tokens / group * width * number * (group - 1) / group
    # At the end every process receives all patches, in float32.
    last = tokens / group * patch * 4 * (group - 1)
    return Sent(0.0, 0.0, 2 * exchanged + 2 * last, 2 * (switches(axes) + 2 * both + 1))
