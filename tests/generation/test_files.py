"""Sampled clips as files: never over another, whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from videodiff.data.video.decode import probe
from videodiff.generation.files import add_clip, replacing_folder, write_clip

FRAMES = np.full((3, 16, 16, 3), 90, dtype=np.uint8)


def test_a_clip_takes_the_next_number_and_leaves_what_is_there(tmp_path: Path) -> None:
    for number, prompt in enumerate(["one", "two <b>", "three"]):
        path = add_clip(tmp_path / "out", FRAMES, 5.0, {"prompt": prompt})
        assert path.name == f"{number:03d}.mp4"
        assert json.loads(path.with_suffix(".json").read_text())["prompt"] == prompt
    (tmp_path / "out/041.mp4").write_bytes(b"of another")
    (tmp_path / "out/notes.txt").touch()
    assert add_clip(tmp_path / "out", FRAMES, 5.0, {}).name == "042.mp4"
    assert (tmp_path / "out/041.mp4").read_bytes() == b"of another"


def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps: found 0"):
        add_clip(tmp_path, FRAMES, 0.0, {})
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_are_written_with_their_edge_twice(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "odd.mp4", FRAMES[:, :15, :13], 5.0).read_bytes())
    assert (info.height, info.width, info.frames) == (16, 14, 3)


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "samples" / "step_1"
    for content in ("old", "new"):
        with replacing_folder(folder) as partial:
            (partial / content).touch()
        assert [path.name for path in folder.iterdir()] == [content]

    def broken() -> None:
        with replacing_folder(folder) as partial:
            (partial / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in folder.parent.iterdir()] == ["step_1"]
