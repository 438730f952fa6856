"""From `conf/metric` to metrics, and to what figures mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import yaml
from hydra.utils import instantiate

from videodiff.metrics.evaluation import declared
from videodiff.metrics.metric import Metric, Quantity
from videodiff.verbs.config.groups import conf_dir, options


def known_quantities() -> dict[str, Quantity]:
    """Return what the figures of all files of `conf/metric` mean, for an evaluation that does not say it itself."""
    parts: dict[str, Any] = {}
    for option in options("metric"):
        parts |= yaml.safe_load((conf_dir() / "metric" / f"{option}.yaml").read_text())
    return declared(build_metrics(parts))


def build_metrics(parts: Mapping[str, Any] | None) -> dict[str, Metric]:
    """Return metrics by their keys; what stands beside a `_target_` are arguments of the function that it names."""
    metrics: dict[str, Metric] = {}
    for key, part in (parts or {}).items():
        made = instantiate(part, _partial_=True)
        if not isinstance(made.func, Metric):
            raise ValueError(
                f"metric.{key}._target_: found {part['_target_']}, expected a function of a case under @metric({{name: "
                f"Quantity(...)}}) of videodiff.metrics.metric, which says what its numbers mean"
            )
        check_settings(f"metric.{key}", made.func, made.keywords)
        metrics[str(key)] = made.func.with_settings(**made.keywords)
    declared(metrics)
    return metrics


def check_settings(where: str, metric: Metric, settings: Mapping[str, Any]) -> None:
    """Raise where a metric's function takes no argument of this name."""
    parameters = list(inspect.signature(metric.measure).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters]
    if unknown := [name for name in settings if name not in names]:
        raise ValueError(f"{where}.{unknown[0]}: found no such setting, expected {' or '.join(names) or 'none at all'}")
