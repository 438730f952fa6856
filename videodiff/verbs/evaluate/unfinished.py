"""An evaluation that is not finished: a folder with what was measured of each batch of clips, and the clips to keep.

A batch is there when its JSON is there. The same evaluation goes on from the batches that it finds; another one removes
them. Nothing in this folder looks like the evaluation of a run.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.storage.files import remove_abandoned, write_whole
from videodiff.generation.files import write_clip
from videodiff.metrics.evaluation import AnyMetric, Batch, Measured
from videodiff.metrics.metric import Case
from videodiff.metrics.settings import deciding

# The files of a kept clip.
SHOWN = ("sampled", "truth")


class Unfinished:
    """The folder `evaluation/.unfinished` of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "evaluation" / ".unfinished"
        self.identity, self.clips = self.path / "identity.json", self.path / "clips"

    def begin(self, identity: Mapping[str, Any]) -> int:
        """Return how many batches of the same evaluation are there; those of another one are removed."""
        if not (self.identity.is_file() and self.identity.read_bytes() == self.record(identity)):
            self.remove()
            self.clips.mkdir(parents=True)
            write_whole(self.identity, self.record(identity))
        # What a killed process was writing would be published with the clips.
        for folder in (self.path, self.clips):
            remove_abandoned(folder)
        return len(list(self.path.glob("batch_*.json")))

    def record(self, identity: Mapping[str, Any]) -> bytes:
        """Return an identity as text, with the number of this very folder: what came with a copied run does not go on.

        Nobody can know the number before the folder is made, so a run of a stranger cannot bring figures with it.
        """
        return json.dumps({**identity, "folder": self.path.stat().st_ino}, indent=1, default=str).encode()

    def name(self, number: int, suffix: str) -> Path:
        """Return the path of a file of a batch."""
        return self.path / f"batch_{number:06d}.{suffix}"

    def has(self, number: int) -> bool:
        """Return whether a batch was measured."""
        return self.name(number, "json").is_file()

    def write(self, number: int, batch: Batch) -> None:
        """Write what was measured of a batch."""
        file = io.BytesIO()
        arrays = {f"{key}:{task}": each for key, tasks in batch.features.items() for task, each in tasks.items()}
        np.savez(file, **arrays)
        write_whole(self.name(number, "npz"), file.getvalue())
        write_whole(self.name(number, "json"), json.dumps([batch.measured, batch.failed]).encode())

    def read(self, count: int) -> Batch:
        """Return what was measured of all batches, in their order."""
        measured: dict[str, list[Measured]] = {}
        features: dict[str, dict[str, list[np.ndarray]]] = {}
        failed: dict[str, str] = {}
        for number in range(count):
            found, reasons = json.loads(self.name(number, "json").read_bytes())
            failed = reasons | failed
            for task, clips in found.items():
                measured.setdefault(task, []).extend(clips)
            with np.load(self.name(number, "npz"), allow_pickle=False) as arrays:
                for name in arrays.files:
                    key, _, task = name.rpartition(":")
                    features.setdefault(key, {}).setdefault(task, []).append(arrays[name])
        whole = {key: {task: np.concatenate(each) for task, each in tasks.items()} for key, tasks in features.items()}
        return Batch(measured, whole, failed)

    def keep(self, task: str, number: int, case: Case, truth: bool) -> None:
        """Write a sampled clip as mp4, and the true one where `truth`."""
        for name, frames in (("sampled", case.frames), ("truth", case.truth if truth else None)):
            if frames is not None:
                write_clip(self.clips / file_of(task, number, name), frames, case.fps, crf=10)

    def publish(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Make the kept clips those of the run, and list them in evaluation/clips.json.

        `sampled` and `truth` of a record are names of files. They get a new folder, so the clips of the previous
        evaluation stay complete until the list names the new ones; its figures do not belong to them and are removed.
        """
        out = self.run / "evaluation"
        former = [path for path in out.glob("[0-9]*") if path.is_dir()]
        own = out / f"{1 + max((int(path.name) for path in former if path.name.isdecimal()), default=0):04d}"
        # From here on this evaluation cannot go on.
        self.identity.unlink()
        self.clips.rename(own)
        for name in ("evaluation.json", "evaluation.md"):
            (self.run / name).unlink(missing_ok=True)
        placed = [
            record | {name: record[name] and (own / record[name]).relative_to(self.run).as_posix() for name in SHOWN}
            for record in map(dict, records)
        ]
        write_whole(out / "clips.json", json.dumps(placed, indent=1).encode())
        for path in former:
            shutil.rmtree(path)
        for path in out.glob("*.mp4"):
            path.unlink()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def file_of(task: str, number: int, name: str) -> str:
    """Return the name of the file of a kept clip."""
    return f"{task}_{number:03d}_{name}.mp4"


def fingerprint(metrics: Mapping[str, AnyMetric]) -> dict[str, Any]:
    """Return what tells these metrics from others: settings, functions of the user, and the files that these name."""
    return {
        key: [sorted((name, str(value)) for name, value in metric.settings.items()), deciding(metric)]
        for key, metric in metrics.items()
    }


def code_in(folder: Path) -> str:
    """Return the checksum of all Python files in a folder: a metric computes by more than its own module."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
