"""What a run folder holds before training begins."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from videodiff.data.storage.files import inside
from videodiff.printing import say

# Names that training, sampling and evaluation write into a run folder.
OURS = (
    *("config.yaml", "overrides.yaml", "command.txt", "environment.json", "quarantine.jsonl", "trained.json"),
    *("rollbacks.jsonl", "origin.json", "validated.json", "wandb.json"),
    *(
        "metrics",
        "stacks",
        "samples",
        "checkpoints",
        "tensorboard",
        "wandb",
        "evaluation",
        "evaluation.json",
        "evaluation.md",
        "report.html",
        "generated",
    ),
)
# These may hold links, and nothing in them is read.
FOREIGN = {"wandb", "tensorboard"}
ATTEMPTS = "attempts"


def set_aside(run: Path) -> None:
    """Move what an attempt without a checkpoint left in a run folder to `attempts/`, and report it.

    Its curves and samples belong to another training.
    """
    left = [run / name for name in OURS if (run / name).exists()]
    if not (run / "config.yaml").is_file():
        return
    folder = next(place for place in (run / ATTEMPTS / str(n) for n in range(10**6)) if not place.exists())
    folder.mkdir(parents=True)
    for path in left:
        os.replace(path, folder / path.name)
    say(f"{run}: found an attempt without a checkpoint, moved it to {folder}", sys.stderr)


def check_links(run: Path) -> None:
    """Raise if a link in a run folder leads out of it: nothing is read or written outside."""
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                inside(run, str(path.relative_to(run)))
        folders[:] = [name for name in folders if name not in FOREIGN]
