"""videodiff index: a manifest for tars written by anyone."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from videodiff.data.samples.indexing import UNUSABLE, index_tars
from videodiff.data.storage.listing import Passed
from videodiff.printing import say
from videodiff.words import count_text

SHOWN = 5


def run(cfg: DictConfig) -> None:
    """Index as configured; print what was found and what could not be used."""
    bar = tqdm(unit="tar", desc="index", delay=0.5)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    passed = Passed()
    try:
        settings = OmegaConf.to_container(cfg, resolve=True)
        manifest, unusable = index_tars(**settings, progress=show, passed=passed)
    finally:
        bar.close()
    say(
        f"{manifest.path}: {count_text(len(manifest), 'sample')} in {count_text(len(manifest.shards), 'shard')}, "
        f"{len(unusable)} unusable"
    )
    if silent := sum(int((captions == 0).sum()) for (captions,) in manifest.by_shard("captions")):
        say(f"{count_text(silent, 'clip has', 'clips have')} no caption")
    if passed:
        say(f"passed over: {passed}")
    for entry in unusable[:SHOWN]:
        say(f"  {entry}")
    if len(unusable) > SHOWN:
        say(f"  and {len(unusable) - SHOWN} more in {manifest.path.parent / UNUSABLE}")
