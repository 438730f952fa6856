"""videodiff prep: metadata or footage in, curated shards and a summary of every input out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_prep.books.private import from_environment
from data_prep.caption.policy import CaptionPolicy
from data_prep.choose.rules import Rules
from data_prep.choose.takedown import read_lines
from data_prep.cut.encode import EncodePolicy
from data_prep.cut.policy import CutPolicy, MakePolicy
from data_prep.engine.local import Engine
from data_prep.fetch.policy import FetchPolicy
from data_prep.pipeline import prep
from data_prep.rate.model_score import rated_numbers
from data_prep.rate.models import find_models
from data_prep.report.figures import examples, figures
from data_prep.report.page import write_preparation
from data_prep.report.progress import Meter
from data_prep.report.summary import format_summary, nothing_kept
from data_prep.score.pixel_score import check_limits, known_scores
from data_prep.settings import Output, Processes, RatePolicy, Settings, Source
from data_prep.sources.reader import Reader
from videodiff.data.order.curriculum import read_buckets
from videodiff.data.storage.files import owning
from videodiff.printing import say, say_lines

ONCE = {"source", "takedown", "retry", "out", "acquire.private"}


def run(cfg: DictConfig) -> None:
    """Prepare as configured and print what became of the inputs."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    kept = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in ONCE]
    settings = settings_of(tree, instantiate(tree["engine"]), instantiate(tree["format"]).func, kept)
    with owning(cfg.out, "prep"):
        with Meter() as meter:
            summary = prep(settings, meter)
        found = figures(cfg.out, settings.rules.filter)
        say_lines(format_summary(summary, cfg.out, examples(found.failures)))
        say(f"report: {write_preparation(Path(cfg.out), found)}")
    if summary.captions and summary.captions.stopped:
        raise ConnectionError(summary.captions.stopped)
    if nothing := nothing_kept(summary, cfg.out):
        raise ValueError(nothing)


def settings_of(
    tree: Mapping[str, Any], engine: Engine, reader: Reader, overrides: Sequence[str] | None = None
) -> Settings:
    """Return the settings for a configuration in the form of `conf/prep.yaml`."""
    rules = tree["prep"]
    limits = {score: {k: v for k, v in sides.items() if v is not None} for score, sides in rules["filter"].items()}
    limits = {score: sides for score, sides in limits.items() if sides}
    check_limits(list(limits), [*known_scores(tree["scores"], tree["score"]), *rated_numbers()])
    models = dict(rules.get("models") or {})
    gpus = models.pop("gpus", 0.0)
    fetch = from_environment(tree["acquire"], "acquire")
    cut, encode = CutPolicy(**tree["cut"]), EncodePolicy(**tree["encode"])
    taken = frozenset() if tree["takedown"] is None else read_lines(tree["takedown"])
    buckets = read_buckets("buckets", tree["buckets"], stride=1)[0] if tree["buckets"] else ()
    return Settings(
        Output(Path(tree["out"]), tree["shard_bytes"], tuple(buckets)),
        Source(tree["source"], reader, tree["root"], tree["reader"]),
        FetchPolicy(**fetch | {"storage": fetch.get("storage") or {}}),
        MakePolicy(cut, encode, tree["crop"], tree["score"], tree["audio"], tuple(tree["scores"])),
        RatePolicy(find_models(models, limits), gpus),
        CaptionPolicy(**tree["caption"]),
        Rules(limits, rules["duplicates"]["near"], tree["licences"], tree["require_caption"], taken),
        Processes(engine, tree["workers"], tree["timeout"]),
        tree["retry"],
        None if overrides is None else tuple(overrides),
    )
