"""A checkpoint of a few bytes, with its record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from videodiff.training.state.files import Written

FILES = ("state/rank_00000.safetensors", "state/progress.json", "average.safetensors")


def write_checkpoint(run: Path, step: int) -> Path:
    """Write the checkpoint of a step into a run; no file of it is what it is called."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    (folder / "state").mkdir(parents=True)
    files = {}
    for name in FILES:
        data = f"{name} of step {step}".encode()
        (folder / name).write_bytes(data)
        files[name] = Written(len(data), hashlib.sha256(data).hexdigest())._asdict()
    record = {"version": 3, "step": step, "state": "whole", "processes": 1, "files": files}
    (folder / "checkpoint.json").write_text(json.dumps(record))
    return folder
