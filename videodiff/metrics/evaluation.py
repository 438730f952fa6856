"""Compute the numbers of evaluation.json: every metric over every clip, with the meaning of each figure.

A batch of clips is measured by itself (`measure`) and may be forgotten then. `figures` makes means, errors, distances
and tables of what was measured, in the order of the clips, so it does not matter which process measured which batch. A
metric that fails at one clip is left out: its figure without that clip would be of other clips than those beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from videodiff.metrics.metric import BESIDE, CONTINUATION, Case, Metric, Numbers, Quantity
from videodiff.metrics.sets.set_metric import TRUTH, SetMetric
from videodiff.metrics.settings import deciding
from videodiff.metrics.summary import mean_curves, predictor_table, ratio_and_error, summarise
from videodiff.metrics.weights import reason_of
from videodiff.words import count_text

AnyMetric = Metric | SetMetric
Remark = Callable[[str], None]
# The row of the table that the samples have.
MODEL = "model"
# What the metrics of single clips find at one clip, by the key of the metric: values that JSON holds.
Measured = dict[str, dict[str, Any]]


class Batch(NamedTuple):
    """What is known of a batch of clips.

    measured: for each task, and for the truth, the record of each clip. features: of clips (clips, rows, width), by the
    key of the metric of sets and by task. failed: why a metric could not measure all of them, by its key.
    """

    measured: dict[str, list[Measured]]
    features: dict[str, dict[str, np.ndarray]]
    failed: dict[str, str]


class Part(NamedTuple):
    """What one metric gives to evaluation.json.

    rows: the numbers of each clip for each row of the table. balls: the number of balls of each clip, and those of its
    numbers that are also written by it.
    """

    flat: dict[str, float | None]
    rows: dict[str, list[dict[str, float]]]
    intervals: dict[str, list[float]]
    curves: dict[str, dict[str, list[float | None]]]
    balls: Sequence[tuple[int, dict[str, float]]] = ()


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
    return remaining(metrics, left_out), left_out


def remaining(metrics: Mapping[str, AnyMetric], left_out: Mapping[str, str]) -> dict[str, AnyMetric]:
    """Return the metrics that are not left out; ValueError, with the reasons, if none remains."""
    if metrics and metrics.keys() <= left_out.keys():
        raise ValueError(f"metric: found nothing that can be measured: {'; '.join(left_out.values())}")
    return {key: metric for key, metric in metrics.items() if key not in left_out}


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
    return figures(metrics, measure(metrics, made), remark)


def measure(metrics: Mapping[str, AnyMetric], clips: Mapping[str, Sequence[Case]]) -> Batch:
    """Return what the metrics find at clips of each task and, under `truth`, at the true clips."""
    batch = Batch({task: [{} for _ in cases] for task, cases in clips.items()}, {}, {})
    for key, metric in metrics.items():
        try:
            if isinstance(metric, SetMetric):
                tasks = (*metric.tasks, TRUTH)
                batch.features[key] = {task: metric.features(cases) for task, cases in clips.items() if task in tasks}
                continue
            tasks = metric.tasks if len(metric.tasks) == 1 else (*metric.tasks, TRUTH)
            for task in (task for task in clips if task in tasks):
                for record, case in zip(batch.measured[task], clips[task], strict=True):
                    record[key] = measure_by(metric, case, task)
        except Exception as error:  # the code of a metric may raise anything
            batch.failed[key] = f"metric.{key}: {reason_of(error)}"
    return batch


def measure_by(metric: Metric, case: Case, task: str) -> dict[str, Any]:
    """Return what one metric finds: the numbers of each row of the table and the curves, or what the clip lacks."""
    try:
        balls = {"balls": len(case.scene.colour)} if metric.by_balls else {}
        if reason := metric.lacks(case):
            return {"lacks": reason, **balls}
        functions = {MODEL: metric.measure, **metric.references}
        rows = {name: numbers(metric, each, case) for name, each in functions.items()}
        found: dict[str, Any] = {"rows": rows, **balls}
        if metric.curve is not None and task == metric.tasks[0]:
            found["curves"] = {name: np.asarray(curve).tolist() for name, curve in metric.curve(case).items()}
            check_curves(found["curves"])
    except Exception as error:
        raise ValueError(f"clip {case.key}: {reason_of(error)}") from error
    return found


def check_curves(curves: Mapping[str, Sequence[float]]) -> None:
    """Raise if a number of a curve is not finite."""
    for name, curve in curves.items():
        if not np.isfinite(curve).all():
            raise ValueError(f"found {name} = {curve}, expected finite numbers")


def figures(metrics: Mapping[str, AnyMetric], batch: Batch, remark: Remark = silent) -> dict[str, Any]:
    """Return flat numbers, the table of predictors and, as `metrics`, the meaning of each of these figures.

    The meaning has the `settings` that decide a figure, if there are any: see `deciding`.

    `intervals` are the confidence intervals of set distances, `curves` are figures frame by frame, `by_balls` are
    figures by the number of balls where clips differ in it, `left_out` the metrics that failed, each with its reason;
    ValueError if all did.

    `batch`: what `measure` found at all clips, in their order.
    """
    left_out, made = dict(batch.failed), []
    for key, metric in remaining(metrics, left_out).items():
        try:
            clips = {task: [clip[key] for clip in each if key in clip] for task, each in batch.measured.items()}
            is_set = isinstance(metric, SetMetric)
            made.append(distances(metric, batch.features[key]) if is_set else means(metric, clips, remark))
        except Exception as error:
            left_out[key] = f"metric.{key}: {reason_of(error)}"
    remaining(metrics, left_out)
    for reason in left_out.values():
        remark(f"left out: {reason}")
    rows: dict[str, list[dict[str, float]]] = {}
    for name, clips in chain.from_iterable(part.rows.items() for part in made):
        for row, clip in zip(rows.setdefault(name, [{} for _ in clips]), clips, strict=True):
            row.update(clip)
    table = predictor_table(rows)
    result = {name: value for part in made for name, value in part.flat.items()} | ({"table": table} if table else {})
    present = result.keys() | {name for row in table for name in row}
    for name in ("intervals", "curves"):
        found = {figure: each for part in made for figure, each in getattr(part, name).items()}
        result |= {name: found} if found else {}
    by_balls = table_by_balls([part.balls for part in made if part.balls])
    result |= {"by_balls": by_balls} if by_balls else {}
    result |= {"left_out": left_out} if left_out else {}
    meaning = {name: each.record() for name, each in declared(metrics).items() if name in present}
    for metric in metrics.values():
        if settings := deciding(metric):
            meaning |= {name: meaning[name] | {"settings": settings} for name in metric.figures() if name in present}
    return result | {"metrics": meaning}


def distances(metric: SetMetric, features: Mapping[str, np.ndarray]) -> Part:
    """Return the distance of each task's clips from the truth."""
    found = metric.compare(features)
    flat: dict[str, float | None] = {}
    for name, one in found.items():
        flat |= {name: one.value, f"{name}_stderr": one.stderr}
    return Part(flat, {}, {name: [one.low, one.high] for name, one in found.items()}, {})


def means(metric: Metric, clips: Mapping[str, Sequence[Mapping[str, Any]]], remark: Remark) -> Part:
    """Return the mean of each number over the clips of each task, with its standard error."""
    first = clips.get(metric.tasks[0], [])
    curves = mean_curves([clip["curves"] for clip in first if "curves" in clip])
    balls = [
        (clip["balls"], {name: value for name, value in numbers.items() if name in metric.by_balls})
        for clip, numbers in zip(first, numbers_of(first, MODEL), strict=True)
        if metric.by_balls
    ]
    if metric.in_table:
        found, rows = compare(metric, first, remark)
        return Part(found, rows, {}, curves, balls)
    if len(metric.tasks) == 1:
        return Part(flat(first, metric.tasks[0], remark), {}, {}, curves, balls)
    found = {}
    for task in [*(task for task in clips if task != TRUTH), TRUTH]:
        numbers = flat(clips[task], task, silent if task == TRUTH else remark)
        found |= {f"{task}_{name}": value for name, value in numbers.items()}
    return Part(found, {}, {}, curves)


def table_by_balls(parts: Sequence[Sequence[tuple[int, dict[str, float]]]]) -> list[dict[str, Any]]:
    """Return a row for each number of balls, from the numbers of the same clips; none if all clips have the same."""
    groups: dict[int, list[dict[str, float]]] = {}
    for clips in zip(*parts, strict=True):
        groups.setdefault(clips[0][0], []).append({name: one[name] for _, one in clips for name in one})
    if len(groups) < 2:
        return []
    named = {count_text(balls, "ball"): groups[balls] for balls in sorted(groups)}
    return [{"name": name, "kind": MODEL, "clips": len(each), **summarise(each)} for name, each in named.items()]


def as_made(task: str, cases: Sequence[Case], videos: Sequence[np.ndarray]) -> list[Case]:
    """Return the cases of the sampled clips of a task."""
    given = task == CONTINUATION
    return [case._replace(frames=frames, given=case.given * given) for case, frames in zip(cases, videos, strict=True)]


def flat(clips: Sequence[Mapping[str, Any]], task: str, remark: Remark) -> dict[str, float | None]:
    """Return the mean of each number over the clips that could be measured, with its standard error."""
    tell_lacking(clips, task, remark)
    return summarise(numbers_of(clips, MODEL)) if clips else {}


def compare(
    metric: Metric, clips: Sequence[Mapping[str, Any]], remark: Remark
) -> tuple[dict[str, float | None], dict[str, list[dict[str, float]]]]:
    """Return the flat numbers, and the numbers of each clip for each row of the table: of model and references."""
    tell_lacking(clips, CONTINUATION, remark)
    if all("lacks" in clip for clip in clips):
        return {}, {}
    rows = {name: numbers_of(clips, name) for name in (MODEL, *metric.references)}
    table = {name: summarise(each) for name, each in rows.items()}
    result = dict(table[MODEL])
    for name, (row, number) in metric.beside.items():
        result |= {name + end: table[row][number + end] for end in ("", *BESIDE) if number + end in table[row]}
    for name, (above, below) in metric.ratios.items():
        row, number = metric.beside[below]
        both = [
            (made[above], reference[number])
            for made, reference in zip(rows[MODEL], rows[row], strict=True)
            if above in made and number in reference
        ]
        if any(under for _, under in both):
            result[name], result[f"{name}_stderr"] = ratio_and_error(*zip(*both, strict=True))
            result |= {f"{name}_clips": len(both)} if len(both) < len(clips) else {}
    return result, rows


def numbers_of(clips: Sequence[Mapping[str, Any]], row: str) -> list[dict[str, float]]:
    """Return the numbers that each clip has in a row of the table; a clip that could not be measured has none."""
    return [clip["rows"][row] if "rows" in clip else {} for clip in clips]


def tell_lacking(clips: Sequence[Mapping[str, Any]], task: str, remark: Remark) -> None:
    """Remark how many clips a metric could not measure, and why."""
    for reason, count in Counter(clip["lacks"] for clip in clips if "lacks" in clip).items():
        remark(f"{task}: {count} of {len(clips)} {reason}, left out")


def numbers(metric: Metric, function: Callable[[Case], Numbers], case: Case) -> dict[str, float]:
    """Return the numbers of one case; ValueError if they break the declaration of the metric."""
    found = {str(name): float(value) for name, value in function(case).items()}
    for name, value in found.items():
        if name not in metric.quantities:
            expected = ", ".join(metric.quantities)
            raise ValueError(f"found the number {name!r}, expected one that it declares: {expected}")
        if not math.isfinite(value):
            raise ValueError(f"found {name} = {value}, expected a finite number")
        quantity = metric.quantities[name]
        if not quantity.holds(value):
            raise ValueError(f"found {name} = {value:g}, expected {quantity.least:g} to {quantity.most:g} as declared")
    return found
