"""What DeepSpeed is told, and which settings are refused before anything is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from videodiff.parallel.zero.config import check_nvme, configuration
from videodiff.parallel.zero.engine import check_copies

PLAIN: dict[str, Any] = {"offload": None, "nvme": None, "pin": True}


def test_settings_have_deepspeeds_names_under_stage_3_alone() -> None:
    third = configuration(3, **PLAIN, prefetch_bucket_size=5, reduce_bucket_size=7)["zero_optimization"]
    assert third == {"stage": 3, "stage3_prefetch_bucket_size": 5, "reduce_bucket_size": 7}
    assert configuration(2, **PLAIN)["zero_optimization"] == {"stage": 2}


def test_state_is_offloaded_alone_or_with_the_weights() -> None:
    state = configuration(2, "state", None, True)
    assert state["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in state["zero_optimization"]
    # DeepSpeed's own optimizer for the host keeps no average.
    assert state["zero_force_ds_cpu_optimizer"] is False
    everything = configuration(3, "all", None, False)["zero_optimization"]
    assert everything["offload_param"] == everything["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


@pytest.mark.parametrize(
    ("stage", "settings", "told"),
    [
        (4, {}, "strategy.stage: found 4, expected 1, 2 or 3"),
        (2, {"offload": "all"}, "strategy.offload: found all under stage 2, expected state"),
        (2, {"offload": "disk"}, "strategy.offload: found 'disk', expected null, state or all"),
        (2, {"offload": "state", "nvme": "/x"}, "strategy.nvme: found /x with stage 2 and offload state"),
        (3, {"nvme": "/x"}, "strategy.nvme: found /x with stage 3 and offload None"),
        (2, {"bucket": 4}, "strategy.bucket: found 4, expected a setting of ZeRO"),
        (2, {"reduce_bucket_size": "many"}, "strategy.reduce_bucket_size: found 'many', expected another value"),
        (2, {"round_robin_gradients": True}, "strategy.round_robin_gradients: found true, expected false"),
        (
            3,
            {"zero_quantized_nontrainable_weights": True},
            "strategy.zero_quantized_nontrainable_weights: found true, ",
        ),
        (3, {"zero_quantized_weights": True}, "strategy.zero_quantized_weights: found true without CUDA, expected f"),
        (3, {"zero_quantized_gradients": True}, "strategy.zero_quantized_gradients: found true without CUDA, expect"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(stage: int, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="strategy") as error:
        configuration(stage, **{**PLAIN, **settings})
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_second_copies_are_of_equal_groups_of_processes() -> None:
    for size, world in ((1, 3), (2, 4), (3, 3), (8, 3)):
        check_copies({"zero_hpz_partition_size": size}, world)
    check_copies({}, 3)
    with pytest.raises(
        ValueError, match=r"strategy\.zero_hpz_partition_size: found 2 with 3 processes, expected a num"
    ):
        check_copies({"zero_hpz_partition_size": 2}, 3)


def test_a_disk_has_to_be_there_and_writable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"strategy\.nvme: found no folder .*nowhere"):
        check_nvme(3, "all", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"strategy\.nvme: found /proc, where no file can be made"):
        check_nvme(3, "all", "/proc")


def test_memory_that_cannot_be_pinned_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*size: int, **how: Any) -> None:
        raise RuntimeError("cannot lock memory\nand a trace")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ValueError, match=r"pin_memory: found no pinned memory \(cannot lock memory\), expected some"):
        configuration(2, "state", None, True)
    configuration(2, "state", None, False)
