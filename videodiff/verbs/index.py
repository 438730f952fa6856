"""videodiff index: a manifest for tars written by anyone."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from videodiff.data.indexing import UNUSABLE, index_tars

SHOWN = 5


def run(cfg: DictConfig) -> None:
    """Index as configured; print what there is and what could not be used."""
    bar = tqdm(unit="tar", desc="index", delay=0.5)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        manifest, unusable = index_tars(**OmegaConf.to_container(cfg, resolve=True), progress=show)
    finally:
        bar.close()
    print(f"{manifest.path}: {len(manifest):,} samples in {len(manifest.shards)} shards, {len(unusable)} unusable")
    for entry in unusable[:SHOWN]:
        print(f"  {entry.shard} at {entry.offset}: {entry.name}: {entry.reason}")
    if len(unusable) > SHOWN:
        print(f"  and {len(unusable) - SHOWN} more in {manifest.path.parent / UNUSABLE}")
