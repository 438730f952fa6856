"""The processes of a training: their number, this one's rank, and messages between them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning
import torch

from videodiff.data.storage.causes import first_line
from videodiff.parallel.launcher import LOST, SAID, under_torchrun

T = TypeVar("T")
# gloo's messages when the process at the other end is gone.
SIGNS = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed", "connection refused")


class LostRank(ConnectionError):
    """Another process of the training is gone; `status` is the exit status for it: start training again."""

    status = LOST


def count_processes(devices: int | str | Sequence[int]) -> int:
    """Return how many processes train together on a node with these devices."""
    if not isinstance(devices, (int, str)):
        return len(devices)
    return max(torch.cuda.device_count(), 1) if devices in ("auto", -1, "-1") else int(devices)


def is_first_process() -> bool:
    """Return whether this process is rank 0, before any process group exists."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def group_size(trainer: lightning.Trainer) -> int:
    """Return how many consecutive ranks share each clip."""
    sequence = getattr(trainer.strategy, "sequence", None)
    return 1 if sequence is None else sequence.size


def gather(world: int, value: T) -> list[T]:
    """Return the values of all ranks in order; every rank has to call."""
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def summed(trainer: lightning.Trainer, *mine: int) -> list[int]:
    """Return the sum of each number over all ranks; a process alone does not make its host wait for its device."""
    if trainer.world_size == 1:
        return list(mine)
    votes = torch.tensor(mine, dtype=torch.int32, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(votes, reduce_op="sum").tolist()


def agree(world: int, problem: Exception | None) -> None:
    """Raise on every rank if any rank has a problem: a rank that went on alone would wait for the others for ever."""
    for found in gather(world, problem):
        if found is not None:
            # The first rank prints it for all of them.
            found.of_all_ranks = True
            raise found


@contextmanager
def agreed(world: int) -> Iterator[None]:
    """Run the block on every rank; if it fails on one, its error is raised on all."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    agree(world, problem)


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that the process at the other end of a message is gone."""
    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in words for sign in SIGNS)


def lost_rank(trainer: lightning.Trainer, error: RuntimeError) -> BaseException | None:
    """Return the dead process that a failure of communication means, None for any other failure.

    If the failed rank or torchrun has reported it already, this rank ends without a message.
    """
    launcher = trainer.strategy.launcher
    if trainer.world_size == 1 or not is_lost(error):
        return None
    if under_torchrun():
        return SystemExit(LOST)
    # A rank leaves the group some seconds before its process ends, so the first rank may report first.
    watch = next((callback.watch for callback in trainer.callbacks if getattr(callback, "watch", None)), None)
    end = time.monotonic() + 15
    while getattr(launcher, "procs", ()) and time.monotonic() < end:
        if (found := launcher.lost()) is not None:
            if watch is not None and trainer.num_nodes > 1:
                # The processes of other nodes do not end with this one.
                watch.fail(found.told)
            if found.status == SAID:
                return SystemExit(SAID)
            return ChildProcessError(f"{found.told}; the last checkpoint is whole, resume= goes on from it")
        time.sleep(0.1)
    if watch is not None and watch.speaks():
        return SystemExit(LOST)
    line = first_line(error)[:200]
    return LostRank(f"rank {trainer.global_rank} lost another one ({line}); the one that failed first says why")
