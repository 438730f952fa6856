"""The meter of the planner watches real trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bench.planning.planner import PROFILED, TINY, WIDE, Case, Machine, Meter, begin, clips, end, planned, with_engines
from videodiff.verbs.config.groups import conf_dir


def test_a_step_of_several_micro_batches_is_measured_as_one(tmp_path: Path) -> None:
    case, steps = Case(64, 2, 2, 32, 1, accumulate=2), PROFILED + 2
    (found,) = end(case, begin(case, clips(tmp_path / "data"), tmp_path, steps, Meter))
    assert len(found["steps"]) == steps
    assert min(found["steps"]) > 0
    assert found["bytes"] > 0


def test_a_tiny_and_a_wide_training_tell_what_an_engine_takes_for_a_block_and_for_a_byte(tmp_path: Path) -> None:
    usual = replace(instantiate(OmegaConf.load(conf_dir() / "cluster" / "cpux2.yaml")), latency_us=0.0)
    true = replace(usual, trainer_ms=7.0, engine_ms={"zero3": 3.0}, engine_gb_per_s={"zero3": 0.2})
    trained = [TINY, *(case._replace(strategy="zero3", processes=2) for case in (TINY, WIDE))]
    paces = {case: planned(case, tmp_path, true).seconds.total / 0.01 for case in trained}
    found = with_engines(Machine(usual, 0.01), tmp_path, paces).cluster
    assert found.trainer_ms == pytest.approx(7.0)
    assert found.engine_ms == {"zero3": pytest.approx(3.0)}
    assert found.engine_gb_per_s == {"zero3": pytest.approx(0.2)}
