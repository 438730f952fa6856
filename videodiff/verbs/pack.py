"""videodiff pack: captioned video in, shards and a manifest out."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from data_prep.pack import pack
from videodiff.verbs.printing import say


def run(cfg: DictConfig) -> None:
    """Pack as configured and print what became of every clip."""
    bar = tqdm(unit="clip", desc="pack", delay=0.5)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        report = pack(**OmegaConf.to_container(cfg, resolve=True), progress=show)
    finally:
        bar.close()
    say(report.format())
