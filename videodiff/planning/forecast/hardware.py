"""The figures of a cluster: cards, links, hosts, prices and faults; the files of `conf/cluster` make these records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

GIB = 2**30
# The share of a host's memory that offloaded state may fill.
HOST_SHARE = 0.8


@dataclass(frozen=True, eq=False)
class Cluster:
    """Equal nodes of equal cards; each card has one process."""

    card: str
    nodes: int
    cards: int
    memory_gib: float
    # TFLOP/s of dense products by data sheet, in `half` and `full` precision.
    tflops: Mapping[str, float]
    # The share of that peak that a product reaches, by its narrowest side.
    products: Mapping[int, float]
    memory_gb_per_s: float
    # The rate at which a card sends, one way: within its node, to other nodes, and to the memory of its host.
    node_gb_per_s: float
    network_gb_per_s: float
    host_gb_per_s: float = 25.0
    # Whether processes compute on a CPU instead of a GPU.
    cpu: bool = False
    # The share of the memory's speed that kernels reach, and the share of their traffic that compile=blocks leaves.
    traffic: float = 0.8
    fusion: float = 0.3
    # The least time of a collective and of an operation.
    latency_us: float = 20.0
    launch_us: float = 5.0
    # What an operation takes besides while Python sees each one, as in a block of selective recompute.
    dispatch_us: float = 0.0
    # Memory of driver and libraries, and the share of memory lost to fragmentation.
    context_gib: float = 1.5
    slack: float = 0.05
    # How long training waits for a checkpoint beyond the copy to the host, and for a new start after a fault.
    stall_s: float = 1.0
    restart_minutes: float = 5.0
    # Figures of a node: its cores, the decoding rate of one core, its memory, and its rate of reading or writing.
    cores: int = 96
    decode_mpixel_per_s: float = 60.0
    host_gib: float = 1000.0
    storage_gb_per_s: float = 2.0
    # US dollars for a card and hour; faults a year for each card, faults of its node included.
    price: float = 0.0
    faults: float = 0.2
    # What the trainer takes of each step besides: logs, checks, callbacks.
    trainer_ms: float = 0.0
    # What the engine of a strategy takes of each step for each block, beside what it sends, and the rate at which it
    # sends within a node, its own copies included: node_gb_per_s where none was measured.
    engine_ms: Mapping[str, float] = field(default_factory=dict)
    engine_gb_per_s: Mapping[str, float] = field(default_factory=dict)
    # Measured, by `table_of`: FLOPs a second of products by their narrowest side, bytes a second of other operations by
    # the bytes that they move; empty where nothing was measured.
    kinds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise where figures do not go together."""
        if self.memory_gib <= self.context_gib:
            raise ValueError(
                f"cluster.memory_gib: found {self.memory_gib:g}, expected more than cluster.context_gib = "
                f"{self.context_gib:g}, which driver and libraries take"
            )
        if lacking := [name for name in ("products", "add") if self.kinds and name not in self.kinds]:
            raise ValueError(
                f"cluster.kinds: found {', '.join(self.kinds)}, expected {' and '.join(lacking)} too, as "
                "`videodiff plan calibrate=` writes them"
            )

    @property
    def world(self) -> int:
        """The number of cards of all nodes, a process each."""
        return self.nodes * self.cards

    @property
    def room(self) -> float:
        """The bytes of a card that training may fill, after driver and fragmentation."""
        return (self.memory_gib - self.context_gib) * GIB * (1 - self.slack)

    @property
    def host_room(self) -> float:
        """The bytes of a host that offloaded state may fill."""
        return HOST_SHARE * GIB * self.host_gib

    def product_rate(self, width: np.ndarray, half: bool, name: str = "mm") -> np.ndarray:
        """Return the FLOPs a second of products with these narrowest sides."""
        if self.kinds:
            tables = (table_of(name, 1, half), table_of("mm", 1, half), table_of("mm", 1, False))
            return between(next(self.kinds[table] for table in tables if table in self.kinds), width)
        return 1e12 * self.tflops["half" if half else "full"] * between(self.products, width)

    def moving(self, name: str, size: np.ndarray, half: bool = False) -> np.ndarray:
        """Return the seconds of operations of this name that move `size` bytes each."""
        if not self.kinds:
            return size / (1e9 * self.memory_gb_per_s * self.traffic)
        tables = (table_of(name, 0, half), name, "add")
        return waited(next(self.kinds[table] for table in tables if table in self.kinds), size, self.kinds["add"])

    def link(self, processes: int, strategy: str = "") -> float:
        """Return the bytes a second that a process sends in a collective of `processes` neighbours of a strategy."""
        near = self.engine_gb_per_s.get(strategy, self.node_gb_per_s)
        return 1e9 * (near if processes <= self.cards else self.network_gb_per_s)


def table_of(name: str, width: int, half: bool) -> str:
    """Return the table that an operation of this name is found in; `width` is 0 for what is no product.

    Attention and other batches of small products run at speeds of their own, and so does Muon's iteration.
    """
    if width and name != "muon":
        name = "products" if name in ("mm", "addmm") else "small products"
    return f"{name} of 16 bits" if half else name


def between(table: Mapping[int, float], at: np.ndarray) -> np.ndarray:
    """Interpolate a table at these keys, linearly in the logarithm of the key."""
    places = sorted(table)
    return np.interp(np.log(np.maximum(at, 1)), np.log(places), [table[place] for place in places])


def waited(table: Mapping[int, float], size: np.ndarray, usual: Mapping[int, float]) -> np.ndarray:
    """Return the seconds of operations by the bytes that they move, from a table of rates.

    An operation below the sizes of the table takes as long as the smallest one, which is mostly its call. Above them,
    the largest one and the time to move the bytes that are more: at the rate at which the table ends, or at that of
    `usual` operations if it is higher, as the table of an operation that was only measured small tells of calls alone.
    """
    places = np.array(sorted(table), float)
    seconds = places / np.array([table[place] for place in sorted(table)])
    known = np.exp(np.interp(np.log(np.maximum(size, 1)), np.log(places), np.log(seconds)))
    rate = np.maximum(places[-1] / seconds[-1], between(usual, size))
    return np.where(size > 0, known + np.maximum(size - places[-1], 0.0) / rate, 0.0)
