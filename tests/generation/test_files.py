"""Sampled clips as files: never over another, whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.material.processes.kills import killed_at_rename
from videodiff.data.storage.files import owning
from videodiff.data.video.decode import decode, probe
from videodiff.generation.files import add_clip, next_number, replacing_folder, write_clip

FRAMES = np.full((3, 16, 16, 3), 90, dtype=np.uint8)


def test_a_clip_takes_the_next_number_and_leaves_what_is_there(tmp_path: Path) -> None:
    for number, prompt in enumerate(["one", "two <b>", "three"]):
        path = add_clip(tmp_path / "out", FRAMES, 3, 5.0, {"prompt": prompt})
        assert path.name == f"{number:03d}.mp4"
        assert json.loads(path.with_suffix(".json").read_text())["prompt"] == prompt
    (tmp_path / "out/041.mp4").write_bytes(b"of another")
    (tmp_path / "out/notes.txt").touch()
    assert add_clip(tmp_path / "out", FRAMES, 3, 5.0, {}).name == "042.mp4"
    assert (tmp_path / "out/041.mp4").read_bytes() == b"of another"


def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps: found 0"):
        add_clip(tmp_path, FRAMES, 3, 0.0, {})
    assert list(tmp_path.iterdir()) == []


def test_poster_sheet_and_array_stand_beside_a_clip_and_its_checksum_is_that_of_the_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 16, 12, 3), dtype=np.uint8)
    path = add_clip(tmp_path, iter(frames), 40, 5.0, {"known": [0]}, lossless=True)
    assert np.array_equal(np.load(path.with_suffix(".npy")), frames)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["frames_sha256"] == hashlib.sha256(frames.tobytes()).hexdigest()
    shown = [round(place) for place in np.linspace(0, 39, 16)]
    with Image.open(path.with_suffix(".poster.png")) as poster:
        assert np.array_equal(np.asarray(poster), frames[shown[8]])
    with Image.open(path.with_suffix(".sheet.png")) as sheet:
        picture = np.asarray(sheet)
    # Two rows of eight, each pixel five times as large, each frame with an edge of two pixels.
    assert picture.shape == (2 * (16 * 5 + 4), 8 * (12 * 5 + 4), 3)
    assert picture[0, 0].tolist() == [224, 138, 0]
    assert np.array_equal(picture[2:82:5, 64 + 2 : 128 - 2 : 5], frames[shown[1]])


def test_an_array_is_whole_or_not_there_when_its_clip_is_interrupted(tmp_path: Path) -> None:
    seen = []

    def frames() -> Iterator[np.ndarray]:
        yield from FRAMES[:2]
        # What a kill would leave now.
        seen.extend(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_clip(tmp_path, frames(), 3, 5.0, {}, lossless=True)
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_clip_and_its_number_is_free_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    if not (child := os.fork()):
        try:
            add_clip(out, (os.kill(os.getpid(), signal.SIGKILL) for _ in range(3)), 3, 5.0, {}, lossless=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in out.glob("[!.]*")] == []
    with owning(out, "sample"):
        assert add_clip(out, FRAMES, 3, 5.0, {}).name == "000.mp4"
        assert list(out.glob(".*.partial")) == []


def test_a_clip_of_a_writer_that_was_killed_at_any_rename_has_all_its_files_or_is_none(tmp_path: Path) -> None:
    beside = {f"000{suffix}" for suffix in (".json", ".poster.png", ".sheet.png", ".npy")}
    for number in range(1, 7):
        out = tmp_path / str(number)
        killed = killed_at_rename(number, lambda out=out: add_clip(out, FRAMES, 3, 5.0, {}, lossless=True))
        assert killed == (number < 6)
        left = {path.name for path in out.glob("[!.]*")}
        assert len(left) == number - 1
        assert ("000.mp4" in left) == (left > beside)
        with owning(out, "sample"):
            assert next_number(out) == (0 if killed else 1)
        assert {path.name for path in out.iterdir()} == (set() if killed else {"000.mp4", *beside})


def test_what_no_mark_belongs_to_stays(tmp_path: Path) -> None:
    for name in ("000.json", "001.json", "001.mp4", ".001.making", "notes.json", ".notes.making"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 2
    names = ["000.json", "001.json", "001.mp4", "notes.json"]
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == names


def test_a_number_that_a_living_writer_holds_is_left_to_it(tmp_path: Path) -> None:
    made = []

    def frames() -> Iterator[np.ndarray]:
        # The next owner of the folder removes what dead processes left, and nothing of this one.
        with owning(tmp_path, "sample"):
            made.append(add_clip(tmp_path, FRAMES, 3, 5.0, {}, number=0))
        yield from FRAMES

    made.append(add_clip(tmp_path, frames(), 3, 5.0, {}, number=0))
    assert [path.name for path in made] == ["001.mp4", "000.mp4"]
    assert len(list(tmp_path.iterdir())) == 8


def test_odd_sizes_are_written_with_their_edge_twice(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "odd.mp4", FRAMES[:, :15, :13], 5.0).read_bytes()
    frames = decode(video, range(probe(video).frames))
    assert frames.shape == (3, 16, 14, 3)
    assert np.abs(frames.astype(int) - 90).max() < 5


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
