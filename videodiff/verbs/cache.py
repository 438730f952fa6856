"""videodiff cache: a dataset encoded once by a codec and a text encoder, to train from instead."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from videodiff.data.encoded.precompute import FAILED, Plan, precompute
from videodiff.printing import say
from videodiff.words import count_text

SHOWN = 5


def run(cfg: DictConfig) -> None:
    """Encode as configured; print what was encoded and what was left out."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    parts = {name: settings.pop(name, None) for name in ("codec", "text")}
    workers, video = settings.pop("workers"), settings.pop("video")
    video = parts["codec"] is None if video is None else video
    settings |= {"root": str(cfg.root), "out": Path(cfg.out), "sizes": sizes_of(settings["sizes"])}
    plan = Plan(build=partial(build, **parts), video=video, **settings)
    bar = tqdm(unit="clip", desc="cache", delay=0.5, disable=os.environ.get("RANK", "0") != "0")

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        made = precompute(plan, workers, show)
    finally:
        bar.close()
    if made:
        say(
            f"{cfg.out}: {count_text(made['samples'], 'sample')} in {count_text(made['shards'], 'shard')}, "
            f"{made['bytes'] / 2**20:.1f} MiB, {made['failed']:,} left out"
        )
        if made["enlarged"]:
            sizes = list(map(list, settings["sizes"]))
            say(f"{count_text(made['enlarged'], 'clip')} smaller than the size in sizes={sizes}, enlarged")
        lines = (Path(cfg.out) / FAILED).read_text().splitlines()
        for entry in map(json.loads, lines[:SHOWN]):
            say(f"  {entry['shard']}: {entry['key']}: {entry['reason']}")
        if len(lines) > SHOWN:
            say(f"  and {len(lines) - SHOWN} more in {Path(cfg.out) / FAILED}")


def sizes_of(sizes: Any) -> list[tuple[int, int]]:
    """Return heights and widths; ValueError for anything else."""
    whole = isinstance(sizes, list) and all(isinstance(size, list) and len(size) == 2 for size in sizes)
    if not whole or not all(isinstance(side, int) for size in sizes for side in size):
        raise ValueError(f"sizes: found {sizes}, expected a list like [[256, 256], [192, 336]]: height, width")
    return [(height, width) for height, width in sizes]


def build(codec: dict[str, Any] | None, text: dict[str, Any] | None) -> tuple[nn.Module | None, nn.Module | None]:
    """Build codec and text encoder from their configurations, in the process where they work."""
    return instantiate(codec), instantiate(text)
