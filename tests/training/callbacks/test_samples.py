"""The samples of a training: how each is called on dashboards and pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from videodiff.diffusion.sampler import euler
from videodiff.generation.sampling import Wanted
from videodiff.generation.settings import Generation
from videodiff.training.callbacks.samples import SampleClips


@pytest.mark.parametrize(("given", "told"), [(1, "1 frame"), (3, "3 frames")])
def test_a_sample_is_called_by_its_caption_and_by_the_frames_that_it_continues(
    tmp_path: Path, given: int, told: str
) -> None:
    samples = SampleClips(tmp_path, Generation(euler, steps=1), given=given)
    known = tuple(range(given))
    samples.wanted = [Wanted("a red ball", 8.0, 0, known), Wanted("", 8.0, 1, known), Wanted("", 8.0, 2)]
    samples.write(SimpleNamespace(loggers=[]), 1, [np.zeros((4, 16, 16, 3), np.uint8)] * 3)
    assert json.loads((tmp_path / "captions.json").read_text()) == {
        "clip_0": f"a red ball (continued from {told})",
        "clip_1": f"(no caption) (continued from {told})",
        "clip_2": "(no caption)",
    }


def test_a_resumed_run_does_not_sample_its_step_again(
    trained: Path, cwd: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.copytree(trained, cwd / "runs" / "small")
    clip = cwd / "runs" / "small" / "samples" / "step_00000004" / "clip_0.mp4"
    assert clip.is_file()
    clip.write_bytes(b"made before")
    # The first micro-batches end at the same step as the checkpoint.
    status, _, err = call("train", "resume=runs/small", "trainer.max_steps=5", "data.micro_batch=1")
    assert status == 0, err
    assert clip.read_bytes() == b"made before"
