"""Going back after training has diverged: to a checkpoint from before it, and past the batches that led there.

    <run>/rollbacks.jsonl   a line a rollback: the step that diverged, the checkpoint to go to, the batches to leave out

A line applies when the run next resumes from that checkpoint; later checkpoints hold the left-out batches themselves.
If training diverges again before it has saved a newer checkpoint, the next rollback goes one checkpoint further back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from videodiff.data.storage.files import inside, write_whole
from videodiff.training.state.checkpoint import PROGRESS, STATE, checkpoints, leave_behind, step_of, whole
from videodiff.training.state.progress import read_progress
from videodiff.words import count_text

FILE = "rollbacks.jsonl"


class Rollback(NamedTuple):
    """At step `diverged` training ended; from `checkpoint` on it leaves out so many global batches."""

    diverged: int
    checkpoint: str
    batches: int

    def line(self) -> str:
        """Return it as a sentence."""
        return f"goes back to {self.checkpoint} and leaves out {count_text(self.batches, 'batch')} from there on"


def read_rollbacks(run: Path) -> list[Rollback]:
    """Return the rollbacks of a run, oldest first."""
    path = inside(run, FILE)
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [Rollback(int(line["diverged"]), str(line["checkpoint"]), int(line["batches"])) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: found no readable rollbacks ({error}), expected a line of JSON each") from error


def roll_back(run: Path, diverged: int, limit: int, left_out: int = 0) -> Rollback | None:
    """Record where to go on after step `diverged`, put newer checkpoints aside; None if there is nowhere to go.

    `limit`: how many rollbacks a run may take; `left_out`: how many batches it has left out by now.
    """
    before = read_rollbacks(run)
    if len(before) >= limit:
        return None
    found = next(usable(run, [one.checkpoint for one in before]), None)
    if found is None:
        return None
    leave_behind(run, found)
    # Counted in the order of the data: batches that an earlier rollback left out lie before an older checkpoint.
    noted = Rollback(diverged, found.name, diverged + left_out - step_of(found) - left_out_before(found))
    lines = [json.dumps(one._asdict()) for one in (*before, noted)]
    write_whole(run / FILE, "".join(f"{line}\n" for line in lines).encode())
    return noted


def usable(run: Path, tried: Iterable[str]) -> Iterable[Path]:
    """Yield the whole checkpoints that no rollback has gone to, newest first."""
    tried = set(tried)
    for checkpoint in reversed(checkpoints(run)):
        if checkpoint.name not in tried:
            try:
                yield whole(checkpoint, STATE)
            except ValueError:
                # The resume reports it.
                continue


def left_out_before(checkpoint: Path) -> int:
    """Return how many batches a run had left out when it saved a checkpoint; 0 in checkpoints that do not say."""
    path = checkpoint / STATE / PROGRESS
    data = read_progress(path).get("ClipDataModule", {}) if path.is_file() else {}
    return int(data.get("left_out", 0))


def batches_to_leave(run: Path, checkpoint: Path) -> int:
    """Return how many global batches a run that continues from this checkpoint leaves out."""
    rollbacks = read_rollbacks(run)
    noted = rollbacks and rollbacks[-1].checkpoint == checkpoint.name
    return rollbacks[-1].batches if noted else 0
