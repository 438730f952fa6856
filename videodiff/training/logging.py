"""What the loggers need beside numbers: a word of set-up, and sampled clips to show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


def wandb_logger(project: str, name: str, save_dir: str, **options: Any) -> WandbLogger:
    """Return a Weights & Biases logger, offline where no key is set."""
    has_key = "WANDB_API_KEY" in os.environ or "api.wandb.ai" in netrc_text()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(project=project, name=name, save_dir=save_dir, offline=not has_key, **options)


def show_clips(
    logger: Logger, step: int, videos: Sequence[Path], clips: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """Show clips, mp4 files and their frames uint8 `t h w c`: as video in wandb, frame by frame in TensorBoard."""
    if isinstance(logger, WandbLogger):
        formats = ["mp4"] * len(videos)
        logger.log_video("samples", [str(path) for path in videos], step=step, caption=list(labels), format=formats)
    elif isinstance(logger, TensorBoardLogger):
        for path, frames in zip(videos, clips, strict=True):
            logger.experiment.add_images(f"samples/{path.stem}", frames, step, dataformats="NHWC")


def netrc_text() -> str:
    """Return what ~/.netrc holds, where `wandb login` leaves its key."""
    path = Path.home() / ".netrc"
    return path.read_text() if path.is_file() else ""
