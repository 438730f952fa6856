"""Loggers that need a word of set-up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(project: str, name: str, save_dir: str, **options: Any) -> WandbLogger:
    """Return a Weights & Biases logger, offline where no key is set."""
    has_key = "WANDB_API_KEY" in os.environ or "api.wandb.ai" in netrc_text()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(project=project, name=name, save_dir=save_dir, offline=not has_key, **options)


def netrc_text() -> str:
    """Return what ~/.netrc holds, where `wandb login` leaves its key."""
    path = Path.home() / ".netrc"
    return path.read_text() if path.is_file() else ""
