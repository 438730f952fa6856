"""What a dashboard shows of sampled clips, read back from what its logger wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videodiff.data.encode import encode
from videodiff.training.logging import show_clips, wandb_logger

FRAMES = np.zeros((5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip_0.mp4"
    path.write_bytes(encode(FRAMES, 5.0))
    return path


def test_tensorboard_shows_every_frame(tmp_path: Path, video: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="board")
    show_clips(logger, 7, [video], [FRAMES], ["a ball"])
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    (shown,) = events.Images("samples/clip_0")
    assert shown.step == 7
    assert (shown.height, shown.width) >= (16, 16)
    assert shown.height * shown.width >= len(FRAMES) * 16 * 16


def test_wandb_keeps_the_video(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    logger = wandb_logger("videodiff", "run", str(tmp_path))
    show_clips(logger, 7, [video], [FRAMES], ["a ball"])
    logger.experiment.finish()
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/**/*.mp4")
    assert kept.read_bytes() == video.read_bytes()


def test_a_table_shows_no_clips(tmp_path: Path, video: Path) -> None:
    show_clips(CSVLogger(tmp_path), 7, [video], [FRAMES], ["a ball"])
    assert list(tmp_path.iterdir()) == [video]
