"""ZeRO 3 with the optimizer's state on a disk: the losses of state in memory, saved and resumed, and nothing left.

DeepSpeed compiles its kernels for disks first, which takes minutes on a machine that has not done so yet.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tests.conftest import tiny
from tests.material.runs.ranks import Ranks
from tests.material.runs.saved_state import tensors_of
from videodiff.data.video.decode import read_frames
from videodiff.parallel.zero.nvme import load_kernels
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint

STEPS = 6
# So large that a process has groups of more than 1 MiB, which DeepSpeed puts on the disk, and a smaller one.
RECIPE = [
    *("model.width=128", "model.heads=4", "model.depth=3", "optimizer=adamw", "optimizer.lr=1e-3"),
    *("optimizer.ema_decay=0.9", "schedule=constant", "trainer.log_every_n_steps=1"),
    *("callbacks.checkpoints.every=3", "callbacks.checkpoints.keep=0"),
    *("callbacks.samples.every=3", "callbacks.samples.clips=2"),
]


def on_the_disk(folder: Path) -> int:
    """Return how many bytes of state, without gradients, are in the folders of all processes."""
    sizes = 0
    # os.walk goes on where a folder is removed meanwhile.
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                if name.endswith(".swp") and "gradient" not in name:
                    sizes += (Path(place) / name).stat().st_size
    return sizes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world_dataset: Path) -> Path:
    """Train with the state in memory, and with the state on a disk, stopped in between."""
    # Longer than a run of a test may take, where nothing is compiled yet.
    load_kernels()
    folder = tmp_path_factory.mktemp("nvme")
    (folder / "disk").mkdir()
    recipe = [*tiny(world_dataset), f"data.validation_root={world_dataset}", "data.validation_clips=4", *RECIPE]
    recipe += [f"trainer.val_check_interval={STEPS // 2}"]
    Ranks(2, folder, ["name=memory", *recipe, "strategy=zero3", f"trainer.max_steps={STEPS}"]).finish()
    on_disk = ["strategy=zero3_offload", f"strategy.nvme={folder / 'disk'}", "strategy.sub_group_size=270000"]
    ranks, most = Ranks(2, folder, ["name=disk", *recipe, *on_disk, f"trainer.max_steps={STEPS // 2}"]), 0
    while ranks.living():
        most = max(most, on_the_disk(folder / "disk"))
        time.sleep(0.05)
    ranks.finish()
    (folder / "most").write_text(str(most))
    Ranks(2, folder, ["resume=runs/disk", on_disk[1], f"trainer.max_steps={STEPS}"]).finish()
    return folder


def test_the_curves_and_the_average_are_those_of_state_in_memory(folder: Path) -> None:
    wanted, found = (read_run(folder / "runs" / name).metrics for name in ("memory", "disk"))
    assert wanted["train/loss"][0].tolist() == list(range(1, STEPS + 1))
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert len(wanted[key][1]) > 1
        np.testing.assert_allclose(found[key][1], wanted[key][1], rtol=1e-5, err_msg=key)
    averages = [load_file(latest_checkpoint(folder / "runs" / name) / AVERAGE) for name in ("memory", "disk")]
    for key, weight in averages[0].items():
        torch.testing.assert_close(
            averages[1][key], weight, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_all_of_the_state_is_saved_and_comes_back(folder: Path) -> None:
    wanted, found = (tensors_of(latest_checkpoint(folder / "runs" / name)) for name in ("memory", "disk"))
    assert_near(wanted, found)


def test_samples_are_made_with_the_averages_on_the_disk(folder: Path) -> None:
    wanted, found = (sorted((folder / "runs" / name / "samples").rglob("*.mp4")) for name in ("memory", "disk"))
    assert len(wanted) == len(found) >= 4
    for one, other in zip(wanted, found, strict=True):
        assert one.name == other.name
        clips = [
            np.stack([frame.to_ndarray(format="rgb24") for frame in read_frames(path.read_bytes())]).astype(int)
            for path in (one, other)
        ]
        assert np.abs(clips[0] - clips[1]).max() <= 1, one


def assert_near(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Hold that tensors are the same by name, to 1e-6."""
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_state_was_on_the_disk_and_is_gone_with_the_run(folder: Path) -> None:
    saved = tensors_of(latest_checkpoint(folder / "runs/disk"))
    weights = sum(value.numel() for key, value in saved.items() if key.endswith(" weight"))
    # Weights, two moments and the average in four bytes each, of the larger of two groups.
    assert 0.5 < int((folder / "most").read_text()) / (16 * weights) < 1.05
    assert list((folder / "disk").iterdir()) == []
