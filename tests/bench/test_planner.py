"""The meter of the planner watches real trainings."""

from __future__ import annotations

from pathlib import Path

from bench.planning.planner import PROFILED, Case, Meter, begin, clips, end


def test_a_step_of_several_micro_batches_is_measured_as_one(tmp_path: Path) -> None:
    case, steps = Case(64, 2, 2, 32, 1, accumulate=2), PROFILED + 2
    (found,) = end(case, begin(case, clips(tmp_path / "data"), tmp_path, steps, Meter))
    assert len(found["steps"]) == steps
    assert min(found["steps"]) > 0
    assert found["bytes"] > 0
