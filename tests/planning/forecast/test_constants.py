"""What the planner assumes of the trainer is what the trainer has: each number that stands in both is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from videodiff.parallel import recompute
from videodiff.parallel.strategy import automatic, for_world
from videodiff.planning.forecast.choice import LEVELS
from videodiff.planning.forecast.faults import BYTES_OF_AVERAGE, BYTES_OF_STATE
from videodiff.planning.forecast.memory import SPLIT, Setting
from videodiff.planning.forecast.trace import SMALL
from videodiff.planning.peaks import peak_of
from videodiff.training.state.checkpoint import room_for, size_of
from videodiff.verbs.config.groups import conf_dir, options

# What each stage of ZeRO splits more than the one before it.
STAGES = ("state", "gradients", "weights")


def option(group: str, name: str) -> dict[str, Any]:
    """Return an option of a group of conf/."""
    return yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())


def test_every_strategy_is_planned_with_what_its_stage_splits() -> None:
    assert set(SPLIT) | {"auto"} == set(options("strategy"))
    for name in SPLIT:
        stage = option("strategy", name).get("stage", 3 if name == "fsdp2" else 0)
        assert SPLIT[name] == STAGES[:stage], name
        assert ("offload" in option("strategy", name)) == name.endswith("_offload"), name


@pytest.mark.parametrize("name", [name for name in SPLIT if name.startswith("zero")])
def test_buffers_of_zero_are_planned_as_large_as_they_are(name: str) -> None:
    given, planned = option("strategy", name), Setting(name, 2)
    assert given["reduce_bucket_size"] == planned.bucket
    if name.startswith("zero3"):
        assert given["prefetch_bucket_size"] == planned.prefetch
        assert given["max_reuse_distance"] == planned.reuse
        assert given["param_persistence_threshold"] == SMALL
        # Nothing else limits what is whole at the turn of the passes.
        assert given["max_live_parameters"] >= planned.reuse // 2 + planned.prefetch


def test_what_the_plan_of_other_strategies_leaves_out_is_off() -> None:
    # Gradients are views of DDP's buckets, which need no memory of their own; `auto` plans as DDP on many processes.
    assert option("strategy", "ddp")["gradient_as_bucket_view"] is True
    assert for_world(automatic(), 2)._ddp_kwargs["gradient_as_bucket_view"] is True
    split = option("strategy", "fsdp2")
    # A gathered weight and a gradient have four bytes, and a block is split again after its forward pass.
    assert (split["gather"], split["reduce"], split["reshard_after_forward"]) == ("float32", "float32", True)


def test_the_levels_of_recompute_are_those_of_training() -> None:
    assert LEVELS == recompute.LEVELS
    assert set(LEVELS) == set(options("recompute"))


def test_a_checkpoint_is_as_large_as_planned(trained: Path) -> None:
    assert room_for(1) == BYTES_OF_STATE + BYTES_OF_AVERAGE
    (newest,) = (trained / "checkpoints").glob("step_00000004")
    # Safetensors: eight bytes for the length of a head, the head, four bytes for each number.
    average = (newest / "average.safetensors").read_bytes()
    weights = (len(average) - 8 - int.from_bytes(average[:8], "little")) // 4
    heads = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in newest.rglob("*.safetensors"))
    # Beside them generators of random numbers and a record.
    assert size_of(newest) - heads == pytest.approx((BYTES_OF_STATE + BYTES_OF_AVERAGE) * weights, rel=0.02, abs=30_000)


@pytest.mark.parametrize("name", [name for name in options("cluster") if name != "cpux2"])
def test_a_profile_has_the_peak_that_the_log_divides_by(name: str) -> None:
    given = option("cluster", name)
    for half, part in ((True, "half"), (False, "full")):
        assert peak_of(given["card"], half) == given["tflops"][part] * 1e12
