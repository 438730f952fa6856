"""videodiff simulate: a world as real mp4 files with captions and exact truth."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from videodiff.data.processes.pool import run_all
from videodiff.data.storage.files import owning, room_at
from videodiff.data.video.encode import encode
from videodiff.machine import cores, memory
from videodiff.printing import say
from videodiff.words import count_text
from videodiff.worlds.scene import render


def run(cfg: DictConfig) -> None:
    """Write the clips into a temporary folder and rename it when all are written."""
    out = Path(cfg.out)
    check_memory(cfg.world.get("frames") or 1, cfg.size)
    world = instantiate(cfg.world)
    check_new(out)
    work = out.with_name(f".{out.name}.partial")
    with owning(work, "simulate"):
        # Another process may have made it meanwhile.
        check_new(out)
        try:
            simulate(cfg, world, work / "clips")
            os.replace(work / "clips", out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    say(f"videodiff simulate: {count_text(cfg.clips, 'clip')} of {cfg.size} px in {out}")


def check_memory(frames: int, size: int) -> None:
    """Raise if the frames of one clip, which are drawn in double precision, do not fit into the memory."""
    needed, there = 8 * 3 * frames * size**2, memory()
    if needed > there:
        raise ValueError(
            f"world.frames, size: found {count_text(frames, 'frame')} of {size} x {size} pixels, which take "
            f"{needed / 2**30:,.0f} GiB while they are drawn, expected at most the {there / 2**30:,.0f} GiB of memory"
        )


def check_new(out: Path) -> None:
    """Raise if a folder that is to be made is there."""
    if out.exists():
        raise FileExistsError(f"out: {out} exists already, expected the name of a new folder")


def simulate(cfg: DictConfig, world: Any, folder: Path) -> None:
    """Write the clips into a new folder, by several processes."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    folder.mkdir()
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.clips)
    write = partial(write_clip, world=world, folder=folder, size=cfg.size, crf=cfg.crf)
    workers = cfg.workers or cores()
    with closing(run_all(write, seeds, workers)) as written:
        for _ in tqdm(written, total=len(seeds), unit="clip", desc="simulate"):
            pass


def write_clip(seed: int, world: Any, folder: Path, size: int, crf: int) -> None:
    """Write one scene as mp4, caption and truth."""
    scene = world.scene(seed)
    stem = folder / f"{seed:09d}"
    with room_at(folder):
        stem.with_suffix(".mp4").write_bytes(encode(render(scene, size), scene.fps, crf=crf))
        stem.with_suffix(".txt").write_text(scene.caption)
        stem.with_suffix(".json").write_text(json.dumps({"fps": scene.fps, "truth": scene.truth()}))
