"""What leaves a process is what rings of its collectives send, and what the planner says of a training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bench.planning.traffic import Called, Case, acknowledged, clips, counted
from bench.sequence import together

NUMBERS = 120_000


def exchange(name: str) -> None:
    """Take part in a collective over 120,000 numbers."""
    whole, part = torch.ones(NUMBERS), torch.ones(NUMBERS // dist.get_world_size())
    if name == "sum":
        dist.all_reduce(whole)
    elif name == "gather":
        dist.all_gather_into_tensor(whole, part)
    elif name == "scattered sum":
        dist.reduce_scatter_tensor(part, whole)
    else:
        dist.all_to_all_single(torch.empty_like(whole), whole)


def bytes_of(group: Any, names: list[str]) -> dict[str, tuple[float, int]]:
    """Return the bytes of each collective: called, and left by sockets."""
    found = {}
    for name in names:
        # The first call of a kind connects.
        exchange(name)
        before = settled()
        with Called() as called:
            exchange(name)
        found[name] = (sum(one.bytes for one in called.calls), settled() - before)
    return found


def settled() -> int:
    """Return how many bytes have left when all processes are here and everything has been acknowledged."""
    dist.barrier()
    count = -1
    # The kernel may wait 40 ms before it acknowledges.
    while count != (count := sum(acknowledged())):
        time.sleep(0.1)
    # Nobody closes its sockets while another one counts.
    dist.barrier()
    return count


def test_collectives_send_what_rings_do() -> None:
    # Each of three processes sends two thirds of the whole, for a sum twice; gloo sums to scatter a sum.
    third = 4 * NUMBERS / 3
    wanted = {"sum": (4, 4), "gather": (2, 2), "scattered sum": (2, 4), "everybody's": (2, 2)}
    for rank in together(3, bytes_of, list(wanted)):
        for name, (called, left) in wanted.items():
            assert rank[name][0] == pytest.approx(called * third)
            assert rank[name][1] == pytest.approx(left * third, rel=0.02), name


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 2, 2, 32, 1, strategy="zero2", processes=2, accumulate=2),
        # Two processes share the matrices, as they save each other 102 million FLOPs.
        Case(64, 2, 2, 32, 1, strategy="ddp", processes=2, optimizer="muon"),
        Case(64, 2, 2, 32, 1, strategy="fsdp2", processes=2, optimizer="muon"),
    ],
    ids=["zero2", "ddp muon", "fsdp2 muon"],
)
def test_a_training_sends_what_the_planner_says(case: Case, tmp_path: Path) -> None:
    found = counted(case, clips(tmp_path / "data"), tmp_path)
    # The planner leaves out the words, 1.3 % of so small a network.
    assert found.errors == pytest.approx((0, 0), abs=0.02)
