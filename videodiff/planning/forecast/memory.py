"""The bytes of a process at the fullest moment of a step, by part.

State follows from the numbers of weights and processes; docs/cluster.md has the formulas and measurements. Activations
come from `trace`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from videodiff.planning.forecast.trace import Weights

# The parts of the training state that each option of conf/strategy splits over the processes.
SPLIT = {
    "single": (),
    "ddp": (),
    "zero1": ("state",),
    "zero2": ("state", "gradients"),
    "zero2_offload": ("state", "gradients"),
    "zero3": ("state", "gradients", "weights"),
    "zero3_offload": ("state", "gradients", "weights"),
    "fsdp2": ("state", "gradients", "weights"),
}
ZERO = tuple(name for name in SPLIT if name.startswith("zero"))
# Processes with the same matrices share Muon's iteration if that saves each so many FLOPs of it.
LEAST = 10**8
# The most bytes that ZeRO gathers at a time for Muon with an offloaded state.
GATHERED = 64 * 2**20


@dataclass(frozen=True)
class Setting:
    """The settings that decide the memory of a training, beside its network and clips.

    strategy: an option of conf/strategy; world: processes; half: the precision is bf16-mixed; muon: the optimizer is
    Muon; accumulate: micro-batches of a step; bucket, prefetch: elements of the strategy's buffers; reuse: the elements
    between two uses of a weight that ZeRO 3 keeps whole from one to the other; node: processes of a node.
    """

    strategy: str
    world: int
    half: bool = False
    muon: bool = False
    accumulate: int = 1
    bucket: int = 50_000_000
    prefetch: int = 50_000_000
    reuse: int = 300_000_000
    node: int = 1

    @property
    def zero(self) -> bool:
        """Whether the strategy is ZeRO, which keeps a float32 copy of weights in half precision."""
        return self.strategy in ZERO

    @property
    def offloaded(self) -> bool:
        """Whether the optimizer's state and its steps are on the host."""
        return self.strategy.endswith("_offload")

    @property
    def weight(self) -> int:
        """The bytes of a weight in the passes, and of its gradient."""
        return 2 if self.zero and self.half else 4

    def share(self, part: str) -> float:
        """Return the share of a part that a process holds."""
        return 1 / self.world if part in SPLIT[self.strategy] else 1.0

    def sharing(self, orthogonal: float) -> int:
        """Return how many processes share Muon's iteration, of so many FLOPs: where each has everything, a node's."""
        if self.strategy == "ddp":
            return self.node if orthogonal * (1 - 1 / self.node) >= LEAST else 1
        # Where the state is offloaded, ZeRO gathers momenta and gradients, and each process iterates all.
        return self.world if "state" in SPLIT[self.strategy] and not self.offloaded else 1

    @property
    def growing(self) -> float:
        """The share of the gradients that a process has after the backward pass and not before it.

        Lightning frees the gradients of a step between the next forward and backward pass; ZeRO with the step.
        """
        return 1 / self.world if self.zero and not self.collected else 0.0

    @property
    def collected(self) -> bool:
        """Whether a process keeps all gradients from one micro-batch to the next."""
        return self.accumulate > 1 and self.strategy in ("single", "zero1")


class Memory(NamedTuple):
    """Bytes of a process, by part; `host` lies in the memory of its host, the rest on the device."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    buffers: float
    encoders: float
    host: float

    @property
    def total(self) -> float:
        """The bytes on the device."""
        return sum(self) - self.host


def state(setting: Setting, weights: Weights) -> Memory:
    """Return the memory without activations: what stays from step to step, and the gradients at their fullest."""
    p, held = weights.all, setting.share("state")
    moments = (2 * p - (weights.matrices if setting.muon else 0)) * 4 * held
    copy = 4 * p * held if setting.zero else 0.0
    average = 4 * p * held
    kept = setting.weight * (p + weights.frozen) * setting.share("weights")
    if setting.strategy == "zero3":
        kept += setting.weight * weights.small
    gradients = setting.weight * p * (setting.growing or setting.share("gradients"))
    host = 0.0
    if setting.offloaded:
        host = moments + copy + average + (gradients if setting.growing < 1 else 0)
        moments = copy = average = gradients = 0.0
        if setting.strategy.startswith("zero3"):
            host, kept = host + kept, 0.0
    return Memory(kept, gradients, moments + copy, average, 0.0, buffers(setting, weights), 0.0, host)


def buffers(setting: Setting, weights: Weights) -> float:
    """Return the bytes of communication: buckets of gradients, and weights gathered while they are in use."""
    if setting.strategy in ("single", "ddp"):
        return 0.0
    if setting.strategy == "fsdp2":
        # Two blocks are whole at a time, one of them with its gradient.
        return 3 * 4.0 * weights.largest
    bucket = 1.0 * setting.weight * setting.bucket
    if setting.strategy.startswith("zero3"):
        # At the turn of the passes the last weights are whole, and those that are fetched ahead.
        whole = min(setting.reuse // 2 + setting.prefetch, weights.all + weights.frozen - weights.small)
        return bucket + setting.weight * (whole + 2 * weights.largest)
    # One bucket fills while the other is summed; the gradients of this process go to float32 before the step.
    return 2 * bucket + (4.0 * weights.all / setting.world if setting.half else 0.0)


def step_transient(setting: Setting, weights: Weights, fused: bool) -> float:
    """Return the bytes that the optimizer needs during its step, beside state and gradients.

    fused: the step is on a GPU, AdamW's in one kernel.
    """
    if setting.muon and setting.offloaded:
        # Gradients and momenta, gathered for some matrices at a time, and four tensors for one matrix.
        return min(8.0 * weights.matrices, 2.0 * GATHERED) + 16.0 * weights.largest / 3
    if setting.muon:
        sharing = setting.sharing(weights.orthogonal)
        # All updates; and for the largest group of equal matrices, a third of all (a side of the feed-forward layers),
        # their stack, its normalised form and two products.
        numbers = (1 + 4 / 3) / sharing
        if sharing > 1 and setting.strategy == "ddp":
            # What it sends, and all gathered steps; gloo, which gathers on a processor, makes a copy of these.
            numbers = 1 / sharing + (1 if fused else 2)
        elif sharing > 1 and setting.strategy == "fsdp2":
            # Rows of the updates, its whole matrices, and the rows that it sends and receives.
            numbers = 4 / sharing
        return 4.0 * numbers * weights.matrices
    return 0.0 if fused else 4.0 * weights.largest / 3


def orders_anew(setting: Setting, weights: Weights) -> float:
    """Return the bytes of DDP's second buckets: after the first step it orders gradients anew, while it has the old."""
    return 4.0 * weights.all if setting.strategy == "ddp" and setting.world > 1 else 0.0


def at_peak(setting: Setting, weights: Weights, passes: float, step: float, encoders: float = 0.0) -> Memory:
    """Return the bytes at the fullest moment of a step.

    passes: the most bytes that the passes hold, growing gradients included; step: the bytes that the optimizer needs
    during its step; encoders: frozen weights, a teacher's among them.
    """
    held = state(setting, weights)
    grown = setting.weight * weights.all * setting.growing * (0 if setting.offloaded else 1)
    above = max(passes - grown, step, orders_anew(setting, weights), 0.0)
    return held._replace(activations=above, encoders=encoders)
