"""videodiff report: one self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from videodiff.printing import say
from videodiff.report.page import write_hero, write_report
from videodiff.shipped.runs import take_run
from videodiff.verbs.config.measuring import known_quantities
from videodiff.verbs.config.stored import read_yaml


def run(cfg: DictConfig) -> None:
    """Write the page; it says so if the configuration cannot be read."""
    cfg.run = str(take_run(cfg.run))
    config = Path(cfg.run) / "config.yaml"
    if config.is_file():
        read_yaml(config)
    say(f"videodiff report: {write_report(Path(cfg.run), known_quantities())}")
    if cfg.hero is not None:
        say(f"videodiff report: {write_hero(Path(cfg.run), Path(cfg.hero))}")
