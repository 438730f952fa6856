"""From `conf/metric` to metrics, and to the meaning of figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from videodiff.metrics.evaluation import AnyMetric, declared
from videodiff.metrics.metric import CLIPS, Metric, Quantity
from videodiff.metrics.sets.set_metric import SetMetric
from videodiff.verbs.config.checking import shown
from videodiff.verbs.config.groups import conf_dir, options
from videodiff.verbs.config.kinds import FLAG, PLACE, choice, optional, whole

# What the settings of our own metrics are.
SETTINGS = {
    "path": optional(PLACE),
    "crop": FLAG,
    "device": choice("auto", "cpu", "cuda"),
    "batch": whole(1),
    "least": optional(whole(2)),
    "resamples": whole(2),
    "clips": choice(*CLIPS),
}


def known_quantities() -> dict[str, Quantity]:
    """Return the meaning of the figures of all files in `conf/metric`, for evaluations that do not record it."""
    parts: dict[str, Any] = {}
    for option in options("metric"):
        parts |= yaml.safe_load((conf_dir() / "metric" / f"{option}.yaml").read_text())
    return declared(build_metrics(parts))


def build_metrics(parts: Mapping[str, Any] | None) -> dict[str, AnyMetric]:
    """Return metrics by key; the keys beside a `_target_` are arguments of the function that it names.

    `clips` is not an argument: it replaces the metric's own choice of clips: all, worlds or footage.
    """
    metrics: dict[str, AnyMetric] = {}
    for key, part in (parts or {}).items():
        check_values(f"metric.{key}", part)
        chosen = {name: value for name, value in part.items() if name != "clips"}
        # In its place, so that an error names its key.
        made = instantiate(OmegaConf.create({"metric": {key: chosen}})["metric"][key], _partial_=True)
        if not isinstance(made.func, (Metric, SetMetric)):
            raise ValueError(
                f"metric.{key}._target_: found {part['_target_']}, expected a function of a case under @metric({{name: "
                f"Quantity(...)}}) of videodiff.metrics.metric, which says what its numbers mean"
            )
        check_settings(f"metric.{key}", made.func, made.keywords)
        try:
            metric = replace(made.func, clips=part.get("clips", made.func.clips))
            metrics[str(key)] = metric.with_settings(**made.keywords)
        except ValueError as error:
            raise ValueError(f"metric.{key}: {error}") from error
    declared(metrics)
    return metrics


def check_values(where: str, part: Mapping[str, Any]) -> None:
    """Raise where a setting of a metric of ours has a value that it cannot have."""
    if not str(part.get("_target_")).startswith("videodiff."):
        return
    for name, value in part.items():
        for fault in SETTINGS[name].check(f"{where}.{name}", value) if name in SETTINGS else ():
            raise ValueError(f"{fault.place}: found {shown(fault.found)}, expected {fault.expected}")


def check_settings(where: str, metric: AnyMetric, settings: Mapping[str, Any]) -> None:
    """Raise if a metric's function has no argument of this name."""
    parameters = metric.parameters()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters]
    if unknown := [name for name in settings if name not in names]:
        raise ValueError(f"{where}.{unknown[0]}: found no such setting, expected {' or '.join(names) or 'none at all'}")
