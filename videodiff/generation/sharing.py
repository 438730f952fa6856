"""The processes that share the clips of a call, as torchrun starts them: each makes whole clips by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from videodiff.data.storage.files import owning
from videodiff.parallel.ranks import LostRank, agreed, gather, is_lost

T = TypeVar("T")
# A process waits for the slowest: the last clips of a call may take hours. One that ends is noticed at once.
PATIENCE = timedelta(days=30)


class Ranks(NamedTuple):
    """One process of several: its rank, and how many there are."""

    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this process writes what there is one of, and prints what all of them know."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` pieces of work are this process's: every `world`-th one."""
        return range(self.rank, count, self.world)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in order; each has to call."""
        return gather(self.world, value)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.gather(None)

    def together(self) -> AbstractContextManager[None]:
        """Run a block on every rank; if it fails on one, its error is raised on all, and none waits for ever."""
        return agreed(self.world)


@contextmanager
def sharing(folder: Path, verb: str) -> Iterator[Ranks]:
    """Share the clips of a call among the processes that torchrun has started; the first one owns the folder.

    Every process makes whole clips by itself, so their number changes no clip.
    """
    ranks = Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if ranks.world > 1:
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        with owning(folder, verb) if ranks.first else nullcontext():
            yield ranks
            ranks.wait()
    except RuntimeError as error:
        if ranks.world == 1 or not is_lost(error):
            raise
        raise LostRank(f"rank {ranks.rank} lost another one; the one that failed says why") from error
    finally:
        if ranks.world > 1:
            torch.distributed.destroy_process_group()


def choose_gpu() -> None:
    """Give each process of a node a GPU of its own."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
