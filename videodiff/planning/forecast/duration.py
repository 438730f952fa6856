"""The seconds of an optimizer step, by part: products, memory traffic, communication, the optimizer, and data.

An operation takes as long as its arithmetic, its memory traffic or its launch, whichever is longest. The speed of a
product depends on its narrowest side.
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

    products: matrix products and attention; rest: operations that only move memory; sent: collectives that run beside
    no computation; optimizer: its step; encoders: frozen encoders; data: waiting for clips.
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
    """Return the seconds of products, and of other operations, in both passes.

    scale: clips of a micro-batch over traced clips; compiled: the operations of a block run as few kernels.
    """
    seconds = np.zeros(2)
    for (name, width, half), where in by_kind(passes, bool(cluster.kinds)).items():
        flops, still = passes.flops[where] * scale, passes.still[where]
        traffic = (passes.traffic[where] - still) * scale + still
        if width:
            # Of a product that was measured, the time to move its numbers is in its speed.
            moved = 0.0 * traffic if cluster.kinds else cluster.moving(name, traffic)
            rate = cluster.product_rate(np.array([width]), half, name)
            seconds[0] += np.maximum.reduce([flops / rate, moved, launched(flops, cluster)]).sum()
        else:
            moved = cluster.moving(name, traffic, half)
            part = cluster.fusion if compiled else 1.0
            seconds[1] += part * np.maximum(moved, launched(traffic, cluster)).sum()
    if cluster.cpu:
        # One core both launches operations and computes them.
        seconds[1] += 1e-6 * cluster.launch_us * len(passes.kinds)
    return seconds


@lru_cache(maxsize=256)
def by_kind(passes: Passes, names: bool) -> dict[Kind, np.ndarray]:
    """Return the indices of the operations of each kind; `names`: tell other operations than products apart by name."""
    found: dict[Kind, list[int]] = {}
    for index, kind in enumerate(passes.kinds):
        found.setdefault(kind if names else kind._replace(name=""), []).append(index)
    return {kind: np.array(where) for kind, where in found.items()}


def launched(work: np.ndarray, cluster: Cluster) -> np.ndarray:
    """Return the least seconds of operations on a GPU; an operation without work launches nothing."""
    return np.where(work > 0, 0.0 if cluster.cpu else 1e-6 * cluster.launch_us, 0.0)


def of_optimizer(setting: Setting, weights: Weights, cluster: Cluster) -> float:
    """Return the seconds of the optimizer's step and of the weight average; it reads and writes all state once.

    ZeRO puts the weights of a process into one tensor. Muon also takes products that are as wide as the network.
    """
    held = setting.share("state") * weights.all
    if setting.offloaded and not cluster.cpu:
        # The host steps: it reads and writes 36 bytes a weight at a tenth of a card's speed or less.
        seconds = 36 * held / 100e9 + 2 * setting.weight * held / (1e9 * cluster.host_gb_per_s)
    else:
        tensors = 1 if setting.zero else max(weights.tensors, 1)
        seconds = tensors * float(cluster.moving("optimizer", np.array([36.0 * held / tensors]))[0])
    if setting.muon and weights.orthogonal:
        flops = weights.orthogonal / setting.sharing(weights.orthogonal)
        seconds += flops / float(cluster.product_rate(np.array([weights.width]), setting.half, "muon")[0])
    return seconds


def of_sent(sent: Sent, cluster: Cluster, setting: Setting, group: int, backward: float) -> float:
    """Return the seconds in which a process waits for collectives.

    Sums of gradients run beside the backward pass, which takes `backward` seconds, and weights are gathered ahead.
    Training waits for weights and Muon's updates, which are sent after both passes, and for tokens, which the next
    block needs.
    """
    link = cluster.link(setting.world, setting.strategy)
    wait = 1e-6 * cluster.latency_us * math.ceil(math.log2(max(setting.world, 2))) * sent.collectives
    ahead = sent.gradients + (sent.weights if setting.share("weights") < 1 else 0.0)
    after = sent.gradients + sent.weights - ahead
    # No computation is left to run beside the sums of the last blocks.
    hidden = min(ahead / link, 0.0 if cluster.cpu else 0.8 * backward)
    near = cluster.link(setting.node if setting.strategy == "ddp" else setting.world, setting.strategy)
    return wait + (ahead + after) / link - hidden + sent.tokens / cluster.link(group) + sent.updates / near
