"""The progress of a training goes on under other micro-batches."""

from __future__ import annotations

from videodiff.training.state.progress import counted_anew


def test_micro_batches_are_counted_by_how_many_a_step_has_now() -> None:
    # Three steps of four micro-batches, stopped within the fourth; from now on a step has two.
    counts = {
        "total": {"ready": 14, "completed": 13},
        "current": {"ready": 14, "completed": 13},
        "is_last_batch": False,
    }
    loop = {"epoch_loop.batch_progress": counts, "epoch_progress": {"ready": 1}}
    found = counted_anew({"global_step": 3, "loops": {"fit_loop": loop}}, 2)
    anew = {"ready": 6, "completed": 6}
    assert found == loop | {"epoch_loop.batch_progress": {"total": anew, "current": anew, "is_last_batch": False}}
    assert counts["total"] == {"ready": 14, "completed": 13}
