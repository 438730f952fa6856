"""videodiff prep: metadata or footage in, curated shards and a summary of every input out."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_prep.pipeline import format_summary, prep
from data_prep.report.figures import figures
from data_prep.report.page import write_preparation
from data_prep.report.progress import Meter
from videodiff.data.storage.files import owning
from videodiff.verbs.printing import say

ONCE = {"source", "takedown", "retry", "out", "acquire.private"}


def run(cfg: DictConfig) -> None:
    """Prepare as configured and print what became of the inputs."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    rules, engine = settings.pop("prep"), instantiate(settings.pop("engine"))
    limits = {score: {k: v for k, v in sides.items() if v is not None} for score, sides in rules["filter"].items()}
    limits = {score: sides for score, sides in limits.items() if sides}
    near, models = rules["duplicates"]["near"], rules.get("models")
    kept = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in ONCE]
    rules = {"filter": limits, "near": near, "models": models}
    with owning(cfg.out, "prep"):
        with Meter() as meter:
            summary = prep(**settings, **rules, engine=engine, progress=meter, overrides=kept)
        say(format_summary(summary, cfg.out))
        say(f"report: {write_preparation(Path(cfg.out), figures(cfg.out, limits))}")
    if "stopped" in summary.get("captions", {}):
        raise ConnectionError(summary["captions"]["stopped"])
