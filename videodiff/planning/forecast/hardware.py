"""What a training runs on, by numbers: cards, links, hosts, money and faults; `conf/cluster` names these records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

GIB = 2**30


@dataclass(frozen=True, eq=False)
class Cluster:
    """Equal nodes of equal cards, a process each."""

    card: str
    nodes: int
    cards: int
    memory_gib: float
    # TFLOPs a second of dense products by data sheet: `half` and `full` precision.
    tflops: Mapping[str, float]
    # The share of them that a product reaches, by its narrowest side.
    products: Mapping[int, float]
    memory_gb_per_s: float
    # What a card sends at once, one way: within its node, to other nodes, and to the memory of its host.
    node_gb_per_s: float
    network_gb_per_s: float
    host_gb_per_s: float = 25.0
    # Processes on a processor instead of GPUs.
    cpu: bool = False
    # The share of the memory's speed that kernels reach, and the part of their traffic that stays under compile=blocks.
    traffic: float = 0.8
    fusion: float = 0.3
    # The least time of a collective and of an operation.
    latency_us: float = 20.0
    launch_us: float = 5.0
    # What driver and libraries take, and the share that holes between tensors take.
    context_gib: float = 1.5
    slack: float = 0.05
    # How long training waits for a checkpoint besides the copy to the host, and for a new start after a fault.
    stall_s: float = 1.0
    restart_minutes: float = 5.0
    # Of a node: cores, what each decodes, memory, and what the node reads or writes.
    cores: int = 96
    decode_mpixel_per_s: float = 60.0
    host_gib: float = 1000.0
    storage_gb_per_s: float = 2.0
    # US dollars for a card and hour; faults of a card, and its share of those of its node, each year.
    price: float = 0.0
    faults: float = 0.2
    # Bytes a second of an operation by the bytes that it moves, where they were measured.
    kinds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def world(self) -> int:
        """The number of cards of all nodes, a process each."""
        return self.nodes * self.cards

    @property
    def room(self) -> float:
        """The bytes of a card that training may fill: without the driver's, and with holes between tensors."""
        return (self.memory_gib - self.context_gib) * GIB * (1 - self.slack)

    def product_rate(self, width: np.ndarray, half: bool) -> np.ndarray:
        """Return the FLOPs a second of products whose narrowest sides are these."""
        return 1e12 * self.tflops["half" if half else "full"] * between(self.products, width)

    def traffic_rate(self, kind: str, size: np.ndarray) -> np.ndarray:
        """Return the bytes a second that operations of a kind move when they move so many."""
        if not self.kinds:
            return np.full(len(size), 1e9 * self.memory_gb_per_s * self.traffic)
        return between(self.kinds.get(kind) or self.kinds["add"], size)

    def link(self, processes: int) -> float:
        """Return the bytes a second that a process sends in a collective of so many neighbours."""
        return 1e9 * (self.node_gb_per_s if processes <= self.cards else self.network_gb_per_s)


def between(table: Mapping[int, float], at: np.ndarray) -> np.ndarray:
    """Return a table's values at these places, by straight lines between its logarithmic places."""
    places = sorted(table)
    return np.interp(np.log(np.maximum(at, 1)), np.log(places), [table[place] for place in places])
