"""DeepSpeed's configuration, built from a few settings, and the checks of what cannot work on this machine."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from videodiff.parallel.zero.nvme import check_disk, check_memory, load_kernels

STAGES = (1, 2, 3)
# What DeepSpeed brings in from a disk at a time: weights, gradients, two moments, and the average of our optimizers.
BUFFERS = 5
# Under stage 3 DeepSpeed has other names for them.
STAGE_3 = ("prefetch_bucket_size", "param_persistence_threshold", "max_live_parameters", "max_reuse_distance")

# What DeepSpeed sends quantised, and the setting with which it keeps frozen weights so.
QUANTISED, FROZEN = ("zero_quantized_weights", "zero_quantized_gradients"), "zero_quantized_nontrainable_weights"


def configuration(stage: int, offload: str | None, nvme: str | None, pin: bool, **options: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration; ValueError or OSError if it cannot work here."""
    check(stage, offload, nvme, pin)
    if options.get("round_robin_gradients"):
        raise ValueError(
            "strategy.round_robin_gradients: found true, expected false: DeepSpeed then takes the averages of one "
            "weight for those of another"
        )
    check_options(options)
    check_quantized(options)
    settings = {f"stage3_{key}" if key in STAGE_3 else key: value for key, value in options.items()}
    config = {
        "zero_optimization": {"stage": stage, **settings},
        "zero_allow_untested_optimizer": True,
        # Our optimizers keep the average, and can take steps on the host too.
        "zero_force_ds_cpu_optimizer": False,
    }
    if offload is not None:
        host: dict[str, Any] = {"device": "cpu", "pin_memory": pin}
        disk = host | {"device": "nvme", "nvme_path": nvme, "buffer_count": BUFFERS}
        config["zero_optimization"]["offload_optimizer"] = host if nvme is None else disk
        if offload == "all":
            # On the host even with `nvme`: they are a fifth of the state, and every step reads them twice.
            config["zero_optimization"]["offload_param"] = dict(host)
    return config


def check_options(options: Mapping[str, Any]) -> None:
    """Raise if DeepSpeed has no such setting, or if the value has the wrong kind."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {*DeepSpeedZeroConfig.model_fields, *STAGE_3}
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"strategy.{name}: found {value!r}, expected a setting of ZeRO (nearest: {near})")
    try:
        DeepSpeedZeroConfig(**options)
    except ValueError as error:
        # The error is pydantic's: a list of places and reasons.
        (name, *_), told = error.errors()[0]["loc"] or ("options",), error.errors()[0]
        raise ValueError(f"strategy.{name}: found {told['input']!r}, expected another value: {told['msg']}") from error


def check_quantized(options: Mapping[str, Any]) -> None:
    """Raise where DeepSpeed would quantise values that cannot be brought back, or has no kernels to do it."""
    if options.get(FROZEN):
        raise ValueError(
            f"strategy.{FROZEN}: found true, expected false: checkpoints would hold the quantised values of frozen "
            "weights without their scales"
        )
    for name in QUANTISED:
        if options.get(name) and not torch.cuda.is_available():
            raise ValueError(f"strategy.{name}: found true without CUDA, expected false: DeepSpeed's kernels need it")


def check(stage: int, offload: str | None, nvme: str | None, pin: bool) -> None:
    """Raise if settings do not fit each other or this machine."""
    if stage not in STAGES:
        raise ValueError(f"strategy.stage: found {stage}, expected 1, 2 or 3")
    if offload not in (None, "state", "all"):
        raise ValueError(f"strategy.offload: found {offload!r}, expected null, state or all")
    if offload == "all" and stage != 3:
        raise ValueError(
            f"strategy.offload: found all under stage {stage}, expected state: only stage 3 splits weights"
        )
    if nvme is not None:
        check_nvme(stage, offload, nvme)
    if offload is not None and pin and torch.cuda.is_available():
        try:
            torch.empty(1, pin_memory=True)
        except RuntimeError as error:
            raise ValueError(
                f"strategy.pin_memory: found no pinned memory ({str(error).splitlines()[0]}), expected some; raise the "
                "limit of locked memory (ulimit -l), or strategy.pin_memory=false"
            ) from error


def check_nvme(stage: int, offload: str | None, nvme: str) -> None:
    """Raise if state cannot be kept in this folder."""
    if stage != 3 or offload is None:
        raise ValueError(
            f"strategy.nvme: found {nvme} with stage {stage} and offload {offload}, expected strategy=zero3_offload"
        )
    check_disk(nvme)
    check_memory()
    load_kernels()
