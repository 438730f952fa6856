"""The seconds of an optimizer step, by part: products, traffic to memory, what is sent, the optimizer, and data.

An operation takes as long as its arithmetic or as its bytes, whichever is longer, and at least as long as its launch. A
product's speed follows from its narrowest side.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from videodiff.planning.forecast.hardware import Cluster
from videodiff.planning.forecast.memory import Setting
from videodiff.planning.forecast.trace import Kind, Passes, Weights
from videodiff.planning.forecast.traffic import Sent


class Seconds(NamedTuple):
    """The seconds of an optimizer step of a process.

    products: matrix products and attention; rest: what moves memory; sent: collectives that nothing hides; optimizer:
    its step; encoders; data: waiting for clips.
    """

    products: float
    rest: float
    sent: float
    optimizer: float
    encoders: float
    data: float

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(self)


def of_passes(passes: Passes, cluster: Cluster, scale: float, compiled: bool) -> np.ndarray:
    """Return the seconds of products and of the rest of both passes.

    scale: clips of a micro-batch for each clip that was traced; compiled: the operations of a block run as few kernels.
    """
    seconds = np.zeros(2)
    for (name, width, half), where in by_kind(passes, bool(cluster.kinds)).items():
        flops, traffic = passes.flops[where] * scale, passes.traffic[where] * scale
        moved = traffic / cluster.traffic_rate(name, traffic)
        if width:
            rate = cluster.product_rate(np.array([width]), half)
            seconds[0] += np.maximum.reduce([flops / rate, moved, launched(flops, cluster)]).sum()
        else:
            part = cluster.fusion if compiled else 1.0
            seconds[1] += part * np.maximum(moved, launched(traffic, cluster)).sum()
    if cluster.cpu:
        # The same core launches operations and computes them.
        seconds[1] += 1e-6 * cluster.launch_us * len(passes.kinds)
    return seconds


@lru_cache(maxsize=256)
def by_kind(passes: Passes, names: bool) -> dict[Kind, np.ndarray]:
    """Return which operations are of each kind; `names`: those that are no products by name too."""
    found: dict[Kind, list[int]] = {}
    for index, kind in enumerate(passes.kinds):
        found.setdefault(kind if names else kind._replace(name=""), []).append(index)
    return {kind: np.array(where) for kind, where in found.items()}


def launched(work: np.ndarray, cluster: Cluster) -> np.ndarray:
    """Return what operations take at least on a GPU; one without work is none of the device."""
    return np.where(work > 0, 0.0 if cluster.cpu else 1e-6 * cluster.launch_us, 0.0)


def of_optimizer(setting: Setting, weights: Weights, cluster: Cluster) -> float:
    """Return the seconds of the optimizer's step with its average: each number of state is read and written once.

    Muon has besides 15 products of each matrix, which are as wide as the network.
    """
    held = setting.share("state") * weights.all
    if setting.strategy.endswith("_offload"):
        # The host steps: it reads and writes 36 bytes a weight at a tenth of a card's speed or less.
        host = 36 * held / 100e9 + 2 * setting.weight * held / (1e9 * cluster.host_gb_per_s)
        return host
    seconds = 36 * held / float(cluster.traffic_rate("optimizer", np.array([36.0 * held]))[0])
    if setting.muon:
        # Five steps of three products, 2 w^3 FLOPs and more for each w^2 weights.
        width = math.sqrt(weights.matrices and weights.largest / 14)
        flops = 5 * 3 * 2 * width * weights.matrices * setting.share("state")
        seconds += flops / float(cluster.product_rate(np.array([width]), setting.half)[0])
    return seconds


def of_sent(sent: Sent, cluster: Cluster, setting: Setting, group: int, backward: float) -> float:
    """Return the seconds of collectives that nothing hides.

    Sums of gradients run beside the backward pass, of `backward` seconds, and weights are gathered ahead; what comes
    after the step, and tokens, which the next block waits for, hide behind nothing.
    """
    link = cluster.link(setting.world)
    wait = 1e-6 * cluster.latency_us * math.ceil(math.log2(max(setting.world, 2))) * sent.collectives
    ahead = sent.gradients + (sent.weights if setting.share("weights") < 1 else 0.0)
    after = sent.gradients + sent.weights - ahead
    # The sums of the last blocks have nothing left to hide behind.
    hidden = min(ahead / link, 0.0 if cluster.cpu else 0.8 * backward)
    return wait + ahead / link - hidden + after / link + sent.tokens / cluster.link(group)
