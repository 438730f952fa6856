"""The arithmetic of the order: permute without a table, take turns by weight, share a batch out, draw by key.

Pure functions of integers, so that order needs no state and no I/O. `mixture.py` makes global batches of them;
docs/streaming.md tells how, with an example to check by hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from videodiff.words import count_text

ROUNDS = 6
PARTS = 2**31


class Mesh(NamedTuple):
    """Where a process stands: `sequence` consecutive ranks share one clip among them and take the same batch."""

    rank: int = 0
    world: int = 1
    sequence: int = 1

    @property
    def data_rank(self) -> int:
        """Which of the `data_world` different shares of a batch this process takes."""
        return self.rank // self.sequence

    @property
    def reads(self) -> bool:
        """Whether this process reads for its group: the first one does, and hands its batches on."""
        return self.rank % self.sequence == 0

    @property
    def data_world(self) -> int:
        """The number of shares of a global batch; an error if the sequence groups do not fill the world."""
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"mesh: found rank {self.rank} of {count_text(self.world, 'process')}, expected one of them"
            )
        if self.sequence < 1 or self.world % self.sequence:
            raise ValueError(
                f"strategy.sequence_parallel: found {self.sequence} for {count_text(self.world, 'process')}, expected "
                f"one of {divisors(self.world)} (nearest: {nearest_divisor(self.world, self.sequence)})"
            )
        return self.world // self.sequence


ALONE = Mesh()


def positions(global_batch: int, micro: int, accumulate: int, mesh: Mesh) -> np.ndarray:
    """Return the positions of a rank in the global batch, for micro-batch `micro` of its `accumulate`."""
    check_batch_sizes([global_batch], accumulate, mesh)
    if not 0 <= micro < accumulate:
        raise ValueError(f"order: found micro-batch {micro}, expected one of {accumulate}")
    size = global_batch // (accumulate * mesh.data_world)
    return (micro * mesh.data_world + mesh.data_rank) * size + np.arange(size, dtype=np.int64)


def check_batch_sizes(batch_sizes: Sequence[int], accumulate: int, mesh: Mesh) -> None:
    """Raise unless every global batch divides evenly into micro-batches over the data ranks."""
    shares, common = accumulate * mesh.data_world, math.gcd(*batch_sizes)
    if min(*batch_sizes, shares) < 1 or common % shares:
        raise ValueError(
            f"global_batch: found {', '.join(map(str, batch_sizes))} for {mesh.data_world} data ranks x {accumulate} "
            f"micro-batches = {shares}, expected this product to be one of {divisors(common)}"
        )


def divisors(number: int) -> str:
    """Return the divisors of a number as a list to read."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of a number that is nearest to another one."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def deal(turn: ArrayLike, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the player of each turn, and how many turns that player took before: shares by weight.

    In `sum(weights)` turns each player takes exactly its weight. After any number of turns each player is within two
    turns of its share, or within one turn if there are two or three players. Bresenham's line deals the turns to two
    halves of the players; each half deals its own turns in the same way. No table: the number of a turn decides.
    Weights sum to less than 2**32.
    """
    players = sorted((i for i, weight in enumerate(weights) if weight > 0), key=lambda i: -weights[i])
    return deal_among(players, np.asarray(turn, dtype=np.int64), weights)


def deal_among(players: list[int], turn: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Deal turns among players whose weights descend: cut the list where its two parts weigh most alike."""
    if len(players) == 1:
        return np.full_like(turn, players[0]), turn
    sums = list(itertools.accumulate(weights[i] for i in players))
    cut = min(range(1, len(players)), key=lambda i: abs(2 * sums[i - 1] - sums[-1]))
    head, total = sums[cut - 1], sums[-1]
    # The head takes n * head / total of the first n turns, rounded. Whole rounds count separately to stay in 64 bits.
    rounds, rest = np.divmod(turn, total)
    before = rounds * head + (rest * head + total // 2) // total
    after = rounds * head + ((rest + 1) * head + total // 2) // total
    heads, tails = deal_among(players[:cut], before, weights), deal_among(players[cut:], turn - before, weights)
    return np.where(after > before, heads[0], tails[0]), np.where(after > before, heads[1], tails[1])


def parts(shares: Sequence[Fraction]) -> list[int]:
    """Return integers in the ratio of these shares, rounded only if the lowest terms sum to more than 2**31."""
    unit = math.lcm(*(share.denominator for share in shares))
    weights = [int(share * unit) for share in shares]
    common, total = math.gcd(*weights), sum(weights)
    if total // common <= PARTS:
        return [weight // common for weight in weights]
    return [weight and max(1, weight * PARTS // total) for weight in weights]


def resume(state: Mapping[str, Any], identity: Mapping[str, Any]) -> int:
    """Return the step of a saved state; raise if a value that the order depends on has changed."""
    for name, here in identity.items():
        if state.get(name) != here:
            raise ValueError(f"data.{name}: found {here!r}, expected {state.get(name)!r} as in the checkpoint")
    return int(state["step"])


def usual_batch(whole: int, sizes: Sequence[int]) -> int:
    """Return the global batch that `data.micro_batch` is about: the usual one, or if no bucket has it a common part."""
    return whole if whole in sizes else math.gcd(*sizes)


def micro_batches(
    sizes: Sequence[int], whole: int, limit: int | None, world: int, unit: str = "processes", count: int | None = None
) -> int:
    """Return how many micro-batches each of `world` processes takes in a step, whatever its bucket.

    sizes: the global batches of the buckets. limit: the most clips of the global batch `whole`, see `usual_batch`, that
    a process takes at once; None: its whole share. The largest part within the limit that divides evenly is taken.
    count: the micro-batches of a step over all processes, where they are given; the limit does not matter then. unit:
    what takes micro-batches, in words. ValueError if the sizes do not divide.
    """
    common = math.gcd(*sizes)
    if common < 1 or (count and common % count):
        raise ValueError(f"data.global_batch: found {listed(sizes)}, expected multiples of {count or 1}")
    if world < 1 or (count or common) % world:
        key = f"data.batch.micro_batches: found {count}" if count else f"data.global_batch: found {listed(sizes)}"
        raise ValueError(f"{key}, expected a multiple of {world} {unit} (valid {unit}: {divisors(count or common)})")
    share = (count or common) // world
    if count:
        return share
    if limit is None:
        return 1
    fitting = [n for n in range(1, share + 1) if share % n == 0 and whole <= limit * world * n]
    if not fitting:
        raise ValueError(
            f"data.micro_batch: found {limit}, expected at least {whole // common}: global batches of {listed(sizes)} "
            f"clips have at most {common} micro-batches of the same number"
        )
    return fitting[0]


def listed(sizes: Sequence[int]) -> str:
    """Return different numbers as a list to read."""
    return ", ".join(map(str, dict.fromkeys(sizes)))


def draw(below: int, *key: int) -> int:
    """Return an integer in [0, below) that depends on the key alone."""
    return int(absorb(*key) % np.uint64(below)) if below > 1 else 0


def permute(place: ArrayLike, samples: ArrayLike, key: ArrayLike) -> np.ndarray:
    """Return the place to which the permutation of `samples` for this key moves each place: a Feistel network.

    It permutes the cells of a grid that holds at least `samples`. A result outside `samples` is permuted again (cycle
    walking; Black and Rogaway 2002). No table: an epoch of a billion samples costs no memory, and no version of numpy
    changes it. Each place may have its own `samples` (below 2**52) and key.
    """
    place, samples, key = np.broadcast_arrays(place, samples, key)
    shape, place, samples, key = place.shape, place.flatten(), samples.ravel(), key.ravel()
    if (outside := (place < 0) | (place >= samples)).any():
        raise ValueError(f"order: found place {place[outside][0]} of {samples[outside][0]}, expected one of them")
    rows = np.sqrt(samples - 1).astype(np.int64) + 1
    columns = -(-samples // rows)
    outside = np.arange(len(place))
    while len(outside):
        place[outside] = feistel(place[outside], key[outside], rows[outside], columns[outside])
        outside = outside[place[outside] >= samples[outside]]
    return place.reshape(shape)


def feistel(cell: np.ndarray, key: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Permute the cells of a grid: each round shifts the row by a hash of the column, then the reverse."""
    row, column = np.divmod(cell, columns)
    for salt in range(0, 2 * ROUNDS, 2):
        row = (row + shift(key, column, salt, rows)) % rows
        column = (column + shift(key, row, salt + 1, columns)) % columns
    return row * columns + column


def shift(key: np.ndarray, x: np.ndarray, salt: int, below: np.ndarray) -> np.ndarray:
    """Return a number in [0, below) for each x."""
    salted = (x | salt << 56).astype(np.uint64)
    return (mix(key ^ salted) % below.astype(np.uint64)).astype(np.int64)


def absorb(*key: ArrayLike) -> np.ndarray:
    """Return 64 bits that depend on every integer of the key and on their order."""
    state = np.zeros((), dtype=np.uint64)
    for part in key:
        state = mix(state ^ mix(np.asarray(part, dtype=np.int64).astype(np.uint64)))
    return state


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits one to one (SplitMix64; Steele, Lea and Flood 2014)."""
    # Numpy warns where a single number wraps around, and not where an array does.
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return x ^ x >> np.uint64(31)
