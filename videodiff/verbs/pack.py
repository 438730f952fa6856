"""videodiff pack: captioned video in, shards and a manifest out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from data_prep.cut.footage import FitPolicy
from data_prep.pack import PackSettings, PackSource, pack
from videodiff.printing import say_lines


def run(cfg: DictConfig) -> None:
    """Pack as configured and print what became of every clip."""
    settings = settings_of(OmegaConf.to_container(cfg, resolve=True))
    bar = tqdm(unit="clip", desc="pack", delay=0.5)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        report = pack(settings, show)
    finally:
        bar.close()
    say_lines(report.format())


def settings_of(tree: Mapping[str, Any]) -> PackSettings:
    """Return the settings for a configuration in the form of `conf/pack.yaml`."""
    columns = tree["video_column"], tree["caption_column"]
    return PackSettings(
        PackSource(tree["source"], tree["captions"], *columns, tree["require_caption"]),
        Path(tree["out"]),
        FitPolicy(tree["short_side"], tree["crf"], tree["hdr"], tree["deinterlace"]),
        tree["shard_bytes"],
        tree["workers"],
        tree["timeout"],
    )
