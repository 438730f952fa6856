"""Muon under ZeRO on a CPU: DeepSpeed's orthogonalisation without its compiler."""

from __future__ import annotations

import inspect
import os
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import Parameter

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from deepspeed.runtime.zero.muon import original_muon

from videodiff.parallel.zero.muon import ZeroMuon, run_as_written, splittable
from videodiff.training.optimizer import AdamW, Muon


def test_nothing_is_compiled_and_the_update_is_orthogonal() -> None:
    run_as_written()
    for function in (original_muon.muon_update, original_muon.zeropower_via_newtonschulz5):
        assert inspect.unwrap(function) is function
        assert function.__code__.co_filename == original_muon.__file__, "a wrapper of the compiler"
    grad = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    update = original_muon.muon_update(grad, torch.zeros(12, 32), ns_method="standard").float()
    # Muon's five steps bring all singular values to between 0.7 and 1.2.
    values = torch.linalg.svdvals(update)
    assert 0.6 < values.min() < values.max() < 1.3


def test_adamw_is_split_as_it_is_and_muon_is_not_clipped_by_deepspeed() -> None:
    config: dict[str, Any] = {"zero_optimization": {}}
    adamw = partial(AdamW, lr=1e-3)
    assert splittable(adamw, config) is adamw
    assert config == {"zero_optimization": {}}
    splittable(partial(Muon, lr=1e-3), config)
    assert config == {"zero_optimization": {"reduce_scatter": False}, "gradient_clipping": 0.0}
    with pytest.raises(ValueError, match=r"optimizer\.fused: found true"):
        splittable(partial(Muon, fused=True), config)
    on_disk = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}
    with pytest.raises(ValueError, match=r"optimizer: found muon with strategy\.nvme, expected adamw"):
        splittable(partial(Muon, lr=1e-3), on_disk)


def test_matrices_of_a_width_share_a_learning_rate_that_gives_our_step() -> None:
    groups = [
        {"params": [Parameter(torch.zeros(4, 9)), Parameter(torch.zeros(2, 9)), Parameter(torch.zeros(9, 4))],
         "matrix": True},
        {"params": [Parameter(torch.zeros(3))], "matrix": False},
    ]  # fmt: skip
    made = ZeroMuon(groups, lr=0.01, weight_decay=0.1).param_groups
    # 0.2 sqrt(columns) times the rate, and the decay as with the rate itself.
    assert [group["lr"] for group in made] == pytest.approx([0.006, 0.004, 0.01])
    assert [group["lr"] * group["weight_decay"] for group in made] == pytest.approx([0.001] * 3)
