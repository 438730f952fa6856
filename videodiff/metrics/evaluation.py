"""Compute the numbers of evaluation.json: every metric over every clip, with the meaning of each figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from videodiff.metrics.metric import CONTINUATION, Case, Metric, Numbers, Quantity
from videodiff.metrics.sets.bootstrap import Estimate
from videodiff.metrics.sets.set_metric import SetMetric
from videodiff.metrics.summary import mean_curves, predictor_table, ratio_and_error, summarise

AnyMetric = Metric | SetMetric
Remark = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


def usable(
    metrics: Mapping[str, AnyMetric], cases: Sequence[Case] | None = None
) -> tuple[dict[str, AnyMetric], dict[str, str]]:
    """Return the metrics that can run, and for each other one the reason: no weights, no package, or too few clips.

    Without cases no file is opened. ValueError if none can run.
    """
    reasons = {key: metric.lack() for key, metric in metrics.items()}
    if cases:
        sets = {key: metric for key, metric in metrics.items() if isinstance(metric, SetMetric) and not reasons[key]}
        reasons |= {key: metric.unfit(cases) for key, metric in sets.items()}
    left_out = {key: f"metric.{key}: {reason}" for key, reason in reasons.items() if reason}
    if metrics and len(left_out) == len(metrics):
        raise ValueError(f"metric: found nothing that can be measured: {'; '.join(left_out.values())}")
    return {key: metric for key, metric in metrics.items() if key not in left_out}, left_out


def of_clips(metrics: Mapping[str, AnyMetric]) -> dict[str, AnyMetric]:
    """Return the metrics of single clips."""
    return {key: metric for key, metric in metrics.items() if isinstance(metric, Metric)}


def declared(metrics: Mapping[str, AnyMetric]) -> dict[str, Quantity]:
    """Return the quantity of every figure of some metrics; ValueError if two metrics give the same figure."""
    found: dict[str, Quantity] = {}
    owner: dict[str, str] = {}
    for key, metric in metrics.items():
        for name, quantity in metric.figures().items():
            if name in owner:
                raise ValueError(f"metric.{key}: found the number {name!r}, which metric.{owner[name]} gives too")
            found[name], owner[name] = quantity, key
    return found


def evaluate(
    metrics: Mapping[str, AnyMetric],
    cases: Sequence[Case],
    sampled: Mapping[str, Sequence[np.ndarray]],
    remark: Remark = silent,
) -> dict[str, Any]:
    """Return flat numbers, the table of predictors and, as `metrics`, the meaning of each of these figures.

    `intervals` are the confidence intervals of set distances, `curves` are figures frame by frame.

    `cases`: the true clips, with `given` as in a continuation. `sampled`: for each task, the sampled frames of each
    clip. `remark` is called with a line about clips that cannot be measured.
    """
    meaning = declared(metrics)
    without = sum(case.scene is None for case in cases)
    if 0 < without < len(cases):
        remark(f"{without} of {len(cases)} clips have no true scene of a world: their motion is not measured")
    made = {task: as_made(task, cases, videos) for task, videos in sampled.items()}
    result: dict[str, Any] = {}
    rows: dict[str, list[dict[str, float]]] = {}
    beside: dict[str, dict[str, Any]] = {"intervals": {}, "curves": {}}
    for key, metric in metrics.items():
        if metric.clips != "all" and (metric.clips == "worlds") == bool(without):
            continue
        if isinstance(metric, SetMetric):
            found = distances(key, metric, cases, made)
            result |= {name: one.value for name, one in found.items()}
            result |= {f"{name}_stderr": one.stderr for name, one in found.items()}
            beside["intervals"] |= {name: [one.low, one.high] for name, one in found.items()}
            continue
        if metric.curve is not None:
            beside["curves"] |= curves(key, metric, made.get(metric.tasks[0], []))
        if metric.in_table:
            result |= compare(key, metric, made.get(CONTINUATION, []), rows, remark)
        elif len(metric.tasks) == 1:
            result |= flat(key, metric, made.get(metric.tasks[0], []), metric.tasks[0], remark)
        else:
            for task, clips in {**made, "truth": cases}.items():
                found = flat(key, metric, clips, task, silent if task == "truth" else remark)
                result |= {f"{task}_{name}": value for name, value in found.items()}
    table = predictor_table(rows)
    present = result.keys() | {name for row in table for name in row}
    result |= {"table": table} if table else {}
    result |= {name: each for name, each in beside.items() if each}
    return result | {"metrics": {name: each.record() for name, each in meaning.items() if name in present}}


def distances(
    key: str, metric: SetMetric, cases: Sequence[Case], made: Mapping[str, Sequence[Case]]
) -> dict[str, Estimate]:
    """Return the distance of each task's clips from the truth; ValueError, with the metric's name, if it raises."""
    try:
        return metric.compare(cases, made)
    except ValueError as error:
        raise ValueError(f"metric.{key}: {error}") from error


def curves(key: str, metric: Metric, cases: Sequence[Case]) -> dict[str, dict[str, list[float | None]]]:
    """Return the mean of each number in each frame over the cases, with its standard error."""
    try:
        return mean_curves([metric.curve(case) for case in cases if not metric.lacks(case)])
    except ValueError as error:
        raise ValueError(f"metric.{key}: {error}") from error


def as_made(task: str, cases: Sequence[Case], videos: Sequence[np.ndarray]) -> list[Case]:
    """Return the cases of the sampled clips of a task."""
    given = task == CONTINUATION
    return [case._replace(frames=frames, given=case.given * given) for case, frames in zip(cases, videos, strict=True)]


def flat(key: str, metric: Metric, cases: Sequence[Case], task: str, remark: Remark) -> dict[str, float | None]:
    """Return the mean of each number over the cases that can be measured, with its standard error."""
    measured = measurable(metric, cases, task, remark)
    return summary(key, [numbers(key, metric, metric.measure, cases[i]) for i in measured]) if measured else {}


def compare(
    key: str, metric: Metric, cases: Sequence[Case], rows: dict[str, list[dict[str, float]]], remark: Remark
) -> dict[str, float | None]:
    """Add the numbers of model and references to `rows`, a list of clips for each row; return the flat numbers."""
    measured = measurable(metric, cases, CONTINUATION, remark)
    if not measured:
        return {}
    means, clips = {}, {}
    for name, function in {"model": metric.measure, **metric.references}.items():
        found = clips[name] = [numbers(key, metric, function, cases[i]) for i in measured]
        means[name] = summary(key, found)
        row = rows.setdefault(name, [{} for _ in cases])
        for i, clip in zip(measured, found, strict=True):
            row[i] |= clip
    result = dict(means["model"])
    for name, (row, number) in metric.beside.items():
        result[name], result[f"{name}_stderr"] = means[row][number], means[row][f"{number}_stderr"]
    for name, (above, below) in metric.ratios.items():
        row, number = metric.beside[below]
        both = [
            (made[above], reference[number])
            for made, reference in zip(clips["model"], clips[row], strict=True)
            if above in made and number in reference
        ]
        if any(under for _, under in both):
            result[name], result[f"{name}_stderr"] = ratio_and_error(*zip(*both, strict=True))
    return result


def measurable(metric: Metric, cases: Sequence[Case], task: str, remark: Remark) -> list[int]:
    """Return the cases that a metric can measure, and remark why others are left out."""
    reasons = [metric.lacks(case) for case in cases]
    for reason, count in Counter(filter(None, reasons)).items():
        remark(f"{task}: {count} of {len(cases)} {reason}, left out")
    return [i for i, reason in enumerate(reasons) if not reason]


def numbers(key: str, metric: Metric, function: Callable[[Case], Numbers], case: Case) -> dict[str, float]:
    """Return the numbers of one case; ValueError, with the metric's name, if it raises or breaks its declaration."""
    try:
        found = {str(name): float(value) for name, value in function(case).items()}
    except ValueError as error:
        raise ValueError(f"metric.{key}: clip {case.key}: {error}") from error
    except Exception as error:
        raise ValueError(f"metric.{key}: clip {case.key}: {type(error).__name__}: {error}") from error
    for name, value in found.items():
        if name not in metric.quantities:
            expected = ", ".join(metric.quantities)
            raise ValueError(f"metric.{key}: found the number {name!r}, expected one that it declares: {expected}")
        quantity = metric.quantities[name]
        if not quantity.holds(value):
            raise ValueError(
                f"metric.{key}: found {name} = {value:g}, expected {quantity.least:g} to {quantity.most:g} as declared"
            )
    return found


def summary(key: str, clips: Sequence[Numbers]) -> dict[str, float | None]:
    """Return the means over clips; ValueError, with the metric's name, for a number that is not finite."""
    try:
        return summarise(clips)
    except ValueError as error:
        raise ValueError(f"metric.{key}: {error}") from error
