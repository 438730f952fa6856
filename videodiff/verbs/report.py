"""videodiff report: one self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from videodiff.report.page import write_hero, write_report


def run(cfg: DictConfig) -> None:
    """Write the page."""
    print(f"videodiff report: {write_report(Path(cfg.run))}")
    if cfg.hero is not None:
        print(f"videodiff report: {write_hero(Path(cfg.run), Path(cfg.hero))}")
