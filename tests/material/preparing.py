"""Call preparation with the keys of conf/prep.yaml as arguments; the result is the content of `summary.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate

from data_prep import pipeline
from data_prep.engine.local import Local
from data_prep.report.progress import silent
from data_prep.score.pixel_score import DEFAULT
from data_prep.settings import Settings
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.prep import settings_of

GROUPS = {"reader": {}, "acquire": {}, "cut": {}, "encode": {}, "caption": {}}
UNSET = {"root": None, "licences": None, "takedown": None, "retry": None, "buckets": None, "workers": None}
PLAIN = {"scores": list(DEFAULT), "crop": True, "score": True, "audio": "drop", "require_caption": False}
SIZES = {"shard_bytes": 256 * 2**20, "timeout": 3600.0}


def settings(
    out: Path,
    source: Path | str | None = None,
    kind: str = "folder",
    filter: dict | None = None,
    near: int | None = None,
    models: dict | None = None,
    overrides: list[str] | None = None,
    engine: Any = None,
    **keys: Any,
) -> Settings:
    """Return settings of these keys, with the defaults of the records for all others and no limit on any score."""
    rules = {"filter": filter or {}, "duplicates": {"near": near}, "models": models}
    tree = {**GROUPS, **UNSET, **PLAIN, **SIZES, "out": out, "source": source, "prep": rules, **keys}
    reader = instantiate(yaml.safe_load((conf_dir() / "format" / f"{kind}.yaml").read_text())).func
    return settings_of(tree, engine or Local(), reader, overrides)


def prep(out: Path, source: Path | str | None = None, kind: str = "folder", progress=silent, **keys: Any) -> dict:
    """Prepare, and return the summary."""
    return pipeline.prep(settings(out, source, kind, **keys), progress).to_json()
