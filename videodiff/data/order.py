"""Which sample stands where: pure functions of integers, so that order needs no state and no I/O.

The endless stream of a seed has positions 0, 1, 2, ...; global batch `step` is the `global_batch` positions from
`step * global_batch`. Ranks and micro-batches only share a global batch out: the order knows neither.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

TURNS = 6


def sample_at(position: ArrayLike, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return epoch and sample index of stream positions: entry p % samples of the permutation of epoch p // samples.

    Every sample comes once an epoch; a batch may straddle two epochs.
    """
    position = np.asarray(position, dtype=np.int64)
    if samples < 1 or (position < 0).any():
        raise ValueError(f"order: found {samples} samples, lowest position {position.min()}, expected >= 1 and >= 0")
    epoch, place = np.divmod(position, samples)
    return epoch, permute(place, samples, absorb(seed, epoch))


def global_positions(step: int, global_batch: int) -> np.ndarray:
    """Return the stream positions of a global batch."""
    return step * global_batch + np.arange(global_batch, dtype=np.int64)


def rank_positions(step: int, micro: int, global_batch: int, micro_batch: int, rank: int, world: int) -> np.ndarray:
    """Return the stream positions of one rank's `micro`-th micro-batch of a step."""
    steps = micro_batches(global_batch, micro_batch, world)
    if not (0 <= micro < steps and 0 <= rank < world):
        raise ValueError(f"order: found micro-batch {micro} of rank {rank}, expected below {steps} and {world}")
    start = (micro * world + rank) * micro_batch
    return global_positions(step, global_batch)[start : start + micro_batch]


def micro_batches(global_batch: int, micro_batch: int, world: int) -> int:
    """Return how many micro-batches each rank takes a step; it is an error if the global batch does not divide."""
    if min(global_batch, micro_batch, world) < 1 or global_batch % (micro_batch * world):
        raise ValueError(
            f"global_batch: found {global_batch}, expected a multiple of micro_batch {micro_batch} x {world} processes"
        )
    return global_batch // (micro_batch * world)


def draw(below: int, *key: int) -> int:
    """Return an integer in [0, below) that depends on the key alone."""
    return int(absorb(*key) % np.uint64(below)) if below > 1 else 0


def permute(place: np.ndarray, samples: int, key: np.ndarray) -> np.ndarray:
    """Return where each place goes in the permutation of `samples` that belongs to the key: a Feistel network.

    It permutes the cells of a grid that just holds `samples`, and is applied again where it lands outside (cycle
    walking; Black and Rogaway 2002). No table: an epoch of a billion samples costs no memory, and no version of numpy
    changes it.
    """
    rows = math.isqrt(samples - 1) + 1
    columns = -(-samples // rows)
    place = feistel(place, key, rows, columns)
    while (outside := place >= samples).any():
        place = np.where(outside, feistel(place, key, rows, columns), place)
    return place


def feistel(cell: np.ndarray, key: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Permute the cells of a grid: a turn moves the row by a hash of the column, then the column by one of the row."""
    row, column = np.divmod(cell, columns)
    for turn in range(TURNS):
        row = (row + shift(key, column, 2 * turn, rows)) % rows
        column = (column + shift(key, row, 2 * turn + 1, columns)) % columns
    return row * columns + column


def shift(key: np.ndarray, x: np.ndarray, turn: int, below: int) -> np.ndarray:
    """Return a number in [0, below) for each x."""
    salted = (x | turn << 56).astype(np.uint64)
    return (mix(key ^ mix(salted)) % np.uint64(below)).astype(np.int64)


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
