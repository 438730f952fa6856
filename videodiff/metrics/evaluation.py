"""Compute the numbers of evaluation.json: every metric over every clip, with the meaning of each figure.

A clip is measured by itself (`measure`, `describe`) and may be forgotten then. `figures` makes means, errors, distances
and tables of what was measured, in the order of the clips, so it does not matter which process measured which clip.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from videodiff.metrics.metric import CONTINUATION, Case, Metric, Numbers, Quantity
from videodiff.metrics.sets.bootstrap import Estimate
from videodiff.metrics.sets.set_metric import TRUTH, SetMetric
from videodiff.metrics.summary import mean_curves, predictor_table, ratio_and_error, summarise

AnyMetric = Metric | SetMetric
Remark = Callable[[str], None]
# The row of the table that the samples have.
MODEL = "model"
# What the metrics of single clips find at one clip, by the key of the metric: values that JSON holds.
Measured = Mapping[str, Mapping[str, Any]]
# The features of clips (clips, rows, width), by the key of the metric of sets and by task.
Features = Mapping[str, Mapping[str, np.ndarray]]


def silent(line: str) -> None:
    """Say nothing."""


def usable(
    metrics: Mapping[str, AnyMetric], first: Case | None = None, count: int | None = None
) -> tuple[dict[str, AnyMetric], dict[str, str]]:
    """Return the metrics that can run, and for each other one the reason: its weights, a package, or too few clips.

    first: a clip to try the networks on; without it no file is opened. count: how many clips there are, None if that is
    not known yet. ValueError if none can run.
    """
    reasons = {key: metric.lack() for key, metric in metrics.items()}
    if first is not None:
        reasons |= {key: metric.unfit(first, count) for key, metric in metrics.items() if not reasons[key]}
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


def applying(metrics: Mapping[str, AnyMetric], scenes: Sequence[bool], remark: Remark = silent) -> dict[str, AnyMetric]:
    """Return the metrics for these clips, of which some or all have a scene: those of worlds, or those of footage."""
    without = len(scenes) - sum(scenes)
    if 0 < without < len(scenes):
        remark(f"{without} of {len(scenes)} clips have no true scene of a world: their motion is not measured")
    clips = ("all", "footage" if without else "worlds")
    return {key: metric for key, metric in metrics.items() if metric.clips in clips}


def evaluate(
    metrics: Mapping[str, AnyMetric],
    cases: Sequence[Case],
    sampled: Mapping[str, Sequence[np.ndarray]],
    remark: Remark = silent,
) -> dict[str, Any]:
    """Return the figures of clips that are all in memory; see `figures`.

    `cases`: the true clips, with `given` as in a continuation. `sampled`: for each task, the sampled frames of each
    clip. `remark` is called with a line about clips that cannot be measured.
    """
    metrics = applying(metrics, [case.scene is not None for case in cases], remark)
    made = {TRUTH: cases, **{task: as_made(task, cases, videos) for task, videos in sampled.items()}}
    measured = {task: [measure(metrics, case, task) for case in clips] for task, clips in made.items()}
    return figures(metrics, measured, describe(metrics, made), remark)


def measure(metrics: Mapping[str, AnyMetric], case: Case, task: str) -> dict[str, dict[str, Any]]:
    """Return what the metrics of single clips find at a clip of a task, or at a true clip (task `truth`)."""
    return {
        key: measure_by(key, metric, case, task)
        for key, metric in of_clips(metrics).items()
        if task in (metric.tasks if len(metric.tasks) == 1 else (*metric.tasks, TRUTH))
    }


def measure_by(key: str, metric: Metric, case: Case, task: str) -> dict[str, Any]:
    """Return what one metric finds: the numbers of each row of the table and the curves, or what the clip lacks."""
    if reason := metric.lacks(case):
        return {"lacks": reason}
    functions = {MODEL: metric.measure, **metric.references}
    found: dict[str, Any] = {"rows": {name: numbers(key, metric, each, case) for name, each in functions.items()}}
    if metric.curve is not None and task == metric.tasks[0]:
        try:
            found["curves"] = {name: np.asarray(curve).tolist() for name, curve in metric.curve(case).items()}
        except ValueError as error:
            raise ValueError(f"metric.{key}: clip {case.key}: {error}") from error
    return found


def describe(metrics: Mapping[str, AnyMetric], clips: Mapping[str, Sequence[Case]]) -> dict[str, dict[str, np.ndarray]]:
    """Return the features that each metric of sets takes of the clips of each task and of the truth."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, metric in metrics.items():
        if isinstance(metric, SetMetric):
            try:
                found[key] = {
                    task: metric.features([case.truth if task == TRUTH else case.frames for case in cases])
                    for task, cases in clips.items()
                    if task in (*metric.tasks, TRUTH)
                }
            except ValueError as error:
                raise ValueError(f"metric.{key}: {error}") from error
    return found


def figures(
    metrics: Mapping[str, AnyMetric],
    measured: Mapping[str, Sequence[Measured]],
    features: Features,
    remark: Remark = silent,
) -> dict[str, Any]:
    """Return flat numbers, the table of predictors and, as `metrics`, the meaning of each of these figures.

    `intervals` are the confidence intervals of set distances, `curves` are figures frame by frame.

    `measured`: what `measure` found at each clip of each task and of the truth, in the order of the clips; `features`:
    what `describe` gave of all of them.
    """
    meaning = declared(metrics)
    result: dict[str, Any] = {}
    rows: dict[str, list[dict[str, float]]] = {}
    beside: dict[str, dict[str, Any]] = {"intervals": {}, "curves": {}}
    for key, metric in metrics.items():
        if isinstance(metric, SetMetric):
            found = distances(key, metric, features[key])
            result |= {name: one.value for name, one in found.items()}
            result |= {f"{name}_stderr": one.stderr for name, one in found.items()}
            beside["intervals"] |= {name: [one.low, one.high] for name, one in found.items()}
            continue
        by_task = {task: [clip[key] for clip in clips if key in clip] for task, clips in measured.items()}
        first = by_task.get(metric.tasks[0], [])
        if metric.curve is not None:
            beside["curves"] |= curves(key, [clip["curves"] for clip in first if "curves" in clip])
        if metric.in_table:
            result |= compare(key, metric, first, rows, remark)
        elif len(metric.tasks) == 1:
            result |= flat(key, first, metric.tasks[0], remark)
        else:
            for task in [*(task for task in by_task if task != TRUTH), TRUTH]:
                found = flat(key, by_task[task], task, silent if task == TRUTH else remark)
                result |= {f"{task}_{name}": value for name, value in found.items()}
    table = predictor_table(rows)
    present = result.keys() | {name for row in table for name in row}
    result |= {"table": table} if table else {}
    result |= {name: each for name, each in beside.items() if each}
    return result | {"metrics": {name: each.record() for name, each in meaning.items() if name in present}}


def distances(key: str, metric: SetMetric, features: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Return the distance of each task's clips from the truth; ValueError, with the metric's name, if it raises."""
    try:
        return metric.compare(features)
    except ValueError as error:
        raise ValueError(f"metric.{key}: {error}") from error


def curves(key: str, clips: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, dict[str, list[float | None]]]:
    """Return the mean of each number in each frame over the clips, with its standard error."""
    try:
        return mean_curves(clips)
    except ValueError as error:
        raise ValueError(f"metric.{key}: {error}") from error


def as_made(task: str, cases: Sequence[Case], videos: Sequence[np.ndarray]) -> list[Case]:
    """Return the cases of the sampled clips of a task."""
    given = task == CONTINUATION
    return [case._replace(frames=frames, given=case.given * given) for case, frames in zip(cases, videos, strict=True)]


def flat(key: str, clips: Sequence[Mapping[str, Any]], task: str, remark: Remark) -> dict[str, float | None]:
    """Return the mean of each number over the clips that could be measured, with its standard error."""
    found = [clips[i]["rows"][MODEL] for i in measurable(clips, task, remark)]
    return summary(key, found) if found else {}


def compare(
    key: str,
    metric: Metric,
    clips: Sequence[Mapping[str, Any]],
    rows: dict[str, list[dict[str, float]]],
    remark: Remark,
) -> dict[str, float | None]:
    """Add the numbers of model and references to `rows`, a list of clips for each row; return the flat numbers."""
    measured = measurable(clips, CONTINUATION, remark)
    if not measured:
        return {}
    found = {name: [clips[i]["rows"][name] for i in measured] for name in (MODEL, *metric.references)}
    means = {name: summary(key, each) for name, each in found.items()}
    for name, each in found.items():
        row = rows.setdefault(name, [{} for _ in clips])
        for i, one in zip(measured, each, strict=True):
            row[i] |= one
    result = dict(means[MODEL])
    for name, (row, number) in metric.beside.items():
        result[name], result[f"{name}_stderr"] = means[row][number], means[row][f"{number}_stderr"]
    for name, (above, below) in metric.ratios.items():
        row, number = metric.beside[below]
        both = [
            (made[above], reference[number])
            for made, reference in zip(found[MODEL], found[row], strict=True)
            if above in made and number in reference
        ]
        if any(under for _, under in both):
            result[name], result[f"{name}_stderr"] = ratio_and_error(*zip(*both, strict=True))
    return result


def measurable(clips: Sequence[Mapping[str, Any]], task: str, remark: Remark) -> list[int]:
    """Return the indices of the clips that a metric could measure, and remark why others are left out."""
    reasons = [clip.get("lacks", "") for clip in clips]
    for reason, count in Counter(filter(None, reasons)).items():
        remark(f"{task}: {count} of {len(clips)} {reason}, left out")
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
        if not math.isfinite(value):
            raise ValueError(f"metric.{key}: clip {case.key}: found {name} = {value}, expected a finite number")
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
