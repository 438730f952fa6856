"""ZeRO 3 fills up weights that do not divide over the processes with zeros."""

from __future__ import annotations

import os
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from bench.sequence import together
from videodiff.parallel.zero.engine import split_weight


def parts(group: Any, sizes: list[int]) -> list[Tensor]:
    """Return what this process holds of weights of ones; all memory that is not set has no number in it."""
    os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    torch.use_deterministic_algorithms(True)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    return [split_weight(nn.Parameter(torch.ones(size)), config).ds_tensor.tolist() for size in sizes]


def test_what_fills_a_weight_up_is_zero() -> None:
    found = together(3, parts, [6, 7, 1])
    assert [rank[0] for rank in found] == [[1, 1]] * 3
    assert [rank[1] for rank in found] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert [rank[2] for rank in found] == [[1], [0], [0]]
