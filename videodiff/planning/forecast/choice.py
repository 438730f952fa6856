"""Find the best strategy, recompute, sequence parallelism and micro-batch of a training by trying all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from videodiff.planning.flops import Network, forward_and_backward
from videodiff.planning.forecast.duration import Seconds, of_optimizer, of_passes, of_sent
from videodiff.planning.forecast.grown import Grown
from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.memory import SPLIT, Memory, Setting, at_peak, step_transient
from videodiff.planning.forecast.trace import Weights
from videodiff.planning.forecast.traffic import Sent, of_state, of_tokens

LEVELS = ("none", "selective", "full")
# The share of a step's time that a choice must save for each step away from the plainest choice.
GAIN = 0.01
# The width of the products of frozen encoders.
ENCODER_WIDTH = 2048


class Choice(NamedTuple):
    """The settings that change the time and memory of a training but not its result.

    `sequence`: processes that share a clip; `accumulate`: micro-batches of a step.
    """

    strategy: str
    recompute: str
    sequence: int
    accumulate: int


class Encoding(NamedTuple):
    """The cost of frozen encoders: bytes of weights, FLOPs of a clip, and bytes in work: of a clip, and at most."""

    weights: float = 0.0
    flops: float = 0.0
    moment: float = 0.0
    most: float = 0.0


NO_ENCODING = Encoding()


class Shape(NamedTuple):
    """Clips of one bucket: tokens in time and space, pixels of a clip, and clips of a global batch.

    trace: the operations of the passes, by the level of recompute and whether weights have 16 bits. stored: the bytes
    of a clip in storage. encoding: what frozen encoders take for it. steps: how many steps of the training it has.
    """

    name: str
    time: int
    space: int
    pixels: int
    global_batch: int
    trace: Callable[[str, bool], Grown]
    stored: float = 0.0
    encoding: Encoding = NO_ENCODING
    steps: float = 1.0

    @property
    def tokens(self) -> int:
        """The tokens of a clip."""
        return self.time * self.space

    def share(self, axes: Sequence[str], processes: int) -> float:
        """Return the share of a clip of the fullest process of those that share it, as the mean over blocks.

        Blocks over time share positions, all others frames.
        """
        frames, positions = (math.ceil(size / processes) / size for size in (self.time, self.space))
        return sum(positions if axis == "time" else frames for axis in axes) / len(axes)


@dataclass(frozen=True)
class Job:
    """A training, without the cluster that it runs on.

    latents: whether clips are stored encoded. teacher: whether a second network of the same size teaches this one.
    stated: the global batch that a process's micro-batch is a part of, 0 if it is `batch`. micro_batches: of a step of
    all processes; None: any number. refused: strategies that training does not take with the other settings.
    """

    network: Network
    shapes: Sequence[Shape]
    half: bool
    muon: bool
    compiled: bool
    latents: bool = False
    teacher: bool = False
    stated: int = 0
    micro_batches: int | None = None
    refused: tuple[str, ...] = ()

    @property
    def largest(self) -> Shape:
        """The shape whose micro-batches have most tokens."""
        return max(self.shapes, key=lambda shape: shape.tokens * shape.global_batch)

    @property
    def longest(self) -> int:
        """The most tokens in time of a clip: so many processes may share one."""
        return max(shape.time for shape in self.shapes)

    @property
    def steps(self) -> float:
        """The steps of the training."""
        return sum(shape.steps for shape in self.shapes)

    @property
    def batch(self) -> int:
        """The largest number that divides the global batch of every shape."""
        return math.gcd(*(shape.global_batch for shape in self.shapes))

    def mean(self, figures: Iterable[float]) -> float:
        """Return the mean over all steps of a figure of each shape."""
        return sum(s.steps * f for s, f in zip(self.shapes, figures, strict=True)) / self.steps

    def weights(self, choice: Choice) -> Weights:
        """Return how many weights the network has as a choice trains it."""
        return self.shapes[0].trace(choice.recompute, self.halved(choice)).weights

    def halved(self, choice: Choice) -> bool:
        """Tell whether the weights of the passes have 16 bits."""
        return self.half and choice.strategy.startswith("zero")

    def micro_batch(self, shares: int, accumulate: int) -> int:
        """Return data.micro_batch for `accumulate` micro-batches of each of `shares` groups of processes."""
        return (self.stated or self.batch) // (shares * accumulate)


class Plan(NamedTuple):
    """The cost of a choice: the memory of a process, the seconds of a step, and the model FLOPs utilisation.

    `memory` is that of the shape that takes most, `by_shape` the seconds of a step of each shape; `seconds`, `mfu` and
    `sent`, the bytes that a process sends in a step, are means over all steps. `clips`: clips of a micro-batch of the
    largest shape.
    """

    choice: Choice
    memory: Memory
    seconds: Seconds
    mfu: float
    clips: int
    sent: Sent
    by_shape: tuple[Seconds, ...]


def fits(memory: Memory, cluster: Cluster) -> bool:
    """Tell whether the memory fits on card and host."""
    return memory.total <= cluster.room and memory.host * cluster.cards <= cluster.host_room


def choices(job: Job, cluster: Cluster) -> Iterator[Choice]:
    """Yield every choice that divides the batch of a training evenly over a cluster, less recompute before more."""
    several = tuple(name for name in SPLIT if name != "single" and name not in job.refused)
    strategies = ("single",) if cluster.world == 1 else several
    for sequence in (n for n in divisors(cluster.cards) if n <= job.longest):
        shares = cluster.world // sequence
        if job.batch % shares:
            continue
        for accumulate in divisors(job.batch // shares):
            if job.micro_batches not in (None, shares * accumulate):
                continue
            yield from (Choice(s, level, sequence, accumulate) for s in strategies for level in LEVELS)


def setting_of(job: Job, cluster: Cluster, choice: Choice) -> Setting:
    """Return the settings of a choice that decide its memory."""
    return Setting(choice.strategy, cluster.world, job.half, job.muon, choice.accumulate, node=cluster.cards)


def clips_of(shape: Shape, cluster: Cluster, choice: Choice) -> int:
    """Return the clips of a micro-batch of a shape."""
    return shape.global_batch * choice.sequence // (cluster.world * choice.accumulate)


def memory_of(job: Job, cluster: Cluster, choice: Choice) -> Memory:
    """Return the memory of a choice: that of the shape that takes most."""
    found = (memory_of_shape(job, shape, cluster, choice) for shape in job.shapes)
    return max(found, key=lambda memory: memory.total)


def memory_of_shape(job: Job, shape: Shape, cluster: Cluster, choice: Choice) -> Memory:
    """Return the memory in steps of a shape; processes that share clips each hold a part of every clip's tokens."""
    setting, clips = setting_of(job, cluster, choice), clips_of(shape, cluster, choice)
    grown = shape.trace(choice.recompute, job.halved(choice))
    passes = grown.peak(clips * shape.share(job.network.axes, choice.sequence), setting.growing)
    encoding = min(shape.encoding.moment * clips, shape.encoding.most)
    moment = max(encoding, step_transient(setting, grown.weights, not cluster.cpu))
    frozen = shape.encoding.weights + (4.0 * (grown.weights.all + grown.weights.frozen) if job.teacher else 0.0)
    return at_peak(setting, grown.weights, passes, moment, frozen)


def seconds_of(job: Job, shape: Shape, cluster: Cluster, choice: Choice, sent: Sent) -> Seconds:
    """Return the seconds of a step of a shape."""
    setting, clips = setting_of(job, cluster, choice), clips_of(shape, cluster, choice)
    grown = shape.trace(choice.recompute, job.halved(choice))
    own = clips * shape.share(job.network.axes, choice.sequence)
    passes = of_both_passes(grown, cluster, own, job.compiled)
    if job.network.forwards:
        # Passes without a gradient recompute nothing.
        plain = shape.trace("none", job.halved(choice))
        passes = passes + further(job, shape) * of_both_passes(plain, cluster, own, job.compiled)
    products, rest = choice.accumulate * passes
    rest += choice.accumulate * seen_by_python(shape, cluster, choice.recompute, job.halved(choice))
    hidden = of_sent(sent, cluster, setting, choice.sequence, (products + rest) * 2 / 3)
    engine = cluster.engine_ms.get(choice.strategy, 0.0) * len(job.network.axes)
    optimizer = of_optimizer(setting, grown.weights, cluster) + 1e-3 * (cluster.trainer_ms + engine)
    rate = float(cluster.product_rate(np.array([ENCODER_WIDTH]), job.half)[0])
    encoders = shape.encoding.flops * clips * choice.accumulate / rate
    data = max(0.0, waiting(job, shape, cluster) - products - rest - hidden - optimizer - encoders)
    return Seconds(products, rest, hidden, optimizer, encoders, data)


def seen_by_python(shape: Shape, cluster: Cluster, level: str, halved: bool) -> float:
    """Return the seconds in which Python decides of each operation of a micro-batch whether its result is kept."""
    if level != "selective" or not cluster.dispatch_us:
        return 0.0
    repeated, once = (
        float(shape.trace(each, halved).of(lambda one: np.array(len(one.kinds)))) for each in (level, "none")
    )
    # Once as a block computes, and once as it computes again.
    return 2e-6 * cluster.dispatch_us * (repeated - once)


def further(job: Job, shape: Shape) -> float:
    """Return the time of passes without a gradient, as a share of that of passes that learn, without recompute."""
    learning = forward_and_backward(shape.time, shape.space, job.network._replace(forwards=0.0, own=0.0))
    return (forward_and_backward(shape.time, shape.space, job.network) - learning) / learning


@lru_cache(maxsize=4096)
def of_both_passes(grown: Grown, cluster: Cluster, clips: float, compiled: bool) -> np.ndarray:
    """Return the seconds of products, and of other operations, in both passes of a micro-batch."""
    return grown.of(lambda one: of_passes(one, cluster, clips / grown.clips, compiled))


def evaluate(job: Job, cluster: Cluster, choice: Choice) -> Plan:
    """Return the plan of a choice: its memory and its time."""
    setting, weights = setting_of(job, cluster, choice), job.weights(choice)
    all_sent = [both(job, shape, setting, weights, clips_of(shape, cluster, choice), choice) for shape in job.shapes]
    by_shape = tuple(
        seconds_of(job, shape, cluster, choice, own) for shape, own in zip(job.shapes, all_sent, strict=True)
    )
    seconds = Seconds(*map(job.mean, zip(*by_shape, strict=True)))
    flops = job.mean(forward_and_backward(s.time, s.space, job.network) * s.global_batch for s in job.shapes)
    mfu = flops / cluster.world / seconds.total / (1e12 * cluster.tflops["half" if job.half else "full"])
    sent = Sent(*map(job.mean, zip(*all_sent, strict=True)))
    clips = clips_of(job.largest, cluster, choice)
    return Plan(choice, memory_of(job, cluster, choice), seconds, mfu, clips, sent, by_shape)


def both(job: Job, shape: Shape, setting: Setting, weights: Weights, clips: int, choice: Choice) -> Sent:
    """Return what a process sends in a step: gradients and weights, and tokens of clips that processes share.

    clips: those of a micro-batch.
    """
    network = job.network
    # A teacher is whole on each process: its passes gather no weights.
    state = of_state(setting, weights, len(network.axes), 0.0 if job.teacher else network.forwards)
    carried = clips * choice.accumulate * shape.tokens
    tokens = of_tokens(network.axes, carried, network.width, network.patch, choice.sequence, setting.weight)
    passes = 1 + network.forwards / 2
    count = state.collectives + round(passes * tokens.collectives)
    return state._replace(tokens=passes * tokens.tokens, collectives=count)


def waiting(job: Job, shape: Shape, cluster: Cluster) -> float:
    """Return the seconds in which a node reads the clips of a step, and decodes them unless they are latents."""
    clips = shape.global_batch / cluster.nodes
    read = clips * shape.stored / (1e9 * cluster.storage_gb_per_s)
    if job.latents:
        return read
    return max(read, clips * shape.pixels / (1e6 * cluster.decode_mpixel_per_s * cluster.cores))


def plainness(choice: Choice) -> int:
    """Return how many steps a choice is away from the plainest one."""
    offload = choice.strategy.endswith("_offload")
    return (
        list(SPLIT).index(choice.strategy) // 2 + LEVELS.index(choice.recompute) + (choice.sequence > 1) + 2 * offload
    )


def fitting(job: Job, cluster: Cluster) -> list[Plan]:
    """Return all plans that fit on card and host."""
    held = (choice for choice in choices(job, cluster) if fits(memory_of(job, cluster, choice), cluster))
    return [evaluate(job, cluster, choice) for choice in held]


def best(job: Job, cluster: Cluster) -> Plan | None:
    """Return the fastest plan that fits, or None; of about equal plans, the plainest.

    More recompute never takes less time, so of choices that differ in it alone only the first that fits counts.
    """

    def cost(plan: Plan) -> float:
        return plan.seconds.total * (1 + GAIN * plainness(plan.choice))

    found: dict[Choice, Plan] = {}
    for choice in choices(job, cluster):
        alone = choice._replace(recompute="any")
        if alone not in found and fits(memory_of(job, cluster, choice), cluster):
            found[alone] = evaluate(job, cluster, choice)
    return min(found.values(), key=cost, default=None)


def least(job: Job, cluster: Cluster) -> Memory | None:
    """Return the smallest memory of all choices, or None if the batch does not divide over the cards.

    Of choices that fit on a card, the one that takes least of the host.
    """
    found = (memory_of(job, cluster, choice) for choice in choices(job, cluster))
    return min(found, key=lambda memory: (max(memory.total, cluster.room), memory.host), default=None)


def nearest(job: Job, cluster: Cluster, now: Choice) -> Plan | None:
    """Return the plan that fits and changes fewest settings of the present choice; of several, the fastest."""

    def changes(plan: Plan) -> tuple[int, float]:
        return sum(a != b for a, b in zip(plan.choice, now, strict=True)), plan.seconds.total

    return min(fitting(job, cluster), key=changes, default=None)


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the smallest first."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]
