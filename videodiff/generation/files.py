"""Write sampled clips as files: an mp4, and beside it a JSON with everything that is needed to make it again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from videodiff.data.storage.files import sync, write_whole
from videodiff.data.video.encode import encode


def write_clip(path: Path, frames: np.ndarray, fps: float, crf: int = 18) -> Path:
    """Write frames uint8 `t h w c` as mp4; H.264 needs even sizes, so the last row or column may be repeated."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return write_whole(path, encode(frames, fps, crf=crf))


def write_clips(folder: Path, clips: Mapping[str, np.ndarray], rates: Sequence[float]) -> list[Path]:
    """Write clips under their names into a folder that appears complete or not at all; return the paths of the mp4."""
    with replacing_folder(folder) as partial:
        for (name, frames), fps in zip(clips.items(), rates, strict=True):
            write_clip(partial / f"{name}.mp4", frames, fps)
    return [folder / f"{name}.mp4" for name in clips]


def add_clip(out: Path, frames: np.ndarray, fps: float, facts: dict[str, Any]) -> Path:
    """Write a clip and its JSON under the next free number of a folder; return the path of the mp4."""
    out.mkdir(parents=True, exist_ok=True)
    path = take_number(out, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    try:
        return write_clip(path, frames, fps)
    except BaseException:
        path.with_suffix(".json").unlink(missing_ok=True)
        raise


def take_number(out: Path, facts: bytes) -> Path:
    """Write the JSON under the first free number, safely among several writers; return the path for the mp4."""
    taken = {path.stem for path in out.iterdir()}
    number = max((int(stem) + 1 for stem in taken if stem.isdecimal()), default=0)
    while True:
        path = out / f"{number:03d}.json"
        try:
            with path.open("xb") as file:
                file.write(facts)
                file.flush()
                os.fsync(file.fileno())
            return path.with_suffix(".mp4")
        except FileExistsError:
            number += 1


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without error it takes the name and replaces the old folder."""
    partial, former = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "former"))
    for left in (partial, former):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        if folder.exists():
            folder.rename(former)
        try:
            partial.rename(folder)
        except OSError:
            former.rename(folder)
            raise
        sync(folder.parent)
    finally:
        for left in (partial, former):
            shutil.rmtree(left, ignore_errors=True)
