"""A signal that asks for a checkpoint: all ranks save the same step, and training goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.conftest import tiny
from tests.material.runs.ranks import LIMIT, Ranks
from videodiff.parallel.launcher import AGAIN
from videodiff.training.state.checkpoint import checkpoints, read_record, step_of, whole


def test_a_signal_to_any_rank_saves_and_training_goes_on(tmp_path: Path, world_dataset: Path) -> None:
    more = ["optimizer=adamw", "trainer.max_steps=100000", "callbacks.checkpoints.every=100000"]
    ranks = Ranks(2, tmp_path, ["name=one", *tiny(world_dataset), *more, "callbacks.checkpoints.keep=0"])
    run, end = tmp_path / "runs/one", time.monotonic() + LIMIT
    try:
        saved: list[Path] = []
        sent = 0
        while not saved:
            assert ranks.living(), ranks.said()
            assert time.monotonic() < end, ranks.said()
            if any(run.glob("metrics/version_0/metrics.csv")):
                # Not to the rank that saves the record.
                os.kill(ranks.ranks[1].pid, signal.SIGUSR2)
                sent += 1
            time.sleep(0.2)
            saved = checkpoints(run)
        os.kill(ranks.ranks[0].pid, signal.SIGTERM)
        for rank in ranks.ranks:
            rank.wait(LIMIT)
        assert [rank.returncode for rank in ranks.ranks] == [AGAIN] * 2, ranks.said()
    finally:
        ranks.kill()
    found = checkpoints(run)
    assert step_of(found[0]) == step_of(saved[0]) < step_of(found[-1])
    for checkpoint in found:
        assert read_record(whole(checkpoint))["processes"] == 2
    # The last checkpoint is the one of the end.
    asked = ranks.said().count("SIGUSR2: a checkpoint is saved, training goes on")
    assert 1 <= asked <= sent
    assert len(found) <= asked + 1, "a signal asks once"
