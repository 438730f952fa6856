"""From numbers of single clips to the mean, its standard error and the table of evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

KINDS = {"model": "model", "ground truth": "floor"}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error (None for a single value); ValueError for no values, NaN or infinity."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise ValueError("values: found none, expected at least one")
    if not np.isfinite(numbers).all():
        wrong = np.flatnonzero(~np.isfinite(numbers))
        raise ValueError(
            f"values: found {numbers[wrong[0]]} at {wrong[0]} ({len(wrong)} in all), expected finite numbers"
        )
    if numbers.size == 1:
        return float(numbers[0]), None
    # The mean of equal numbers is rounded, and an error of that size would have all digits of both printed.
    if (numbers == numbers[0]).all():
        return float(numbers[0]), 0.0
    return float(numbers.mean()), float(numbers.std(ddof=1) / np.sqrt(numbers.size))


def ratio_and_error(above: Sequence[float], below: Sequence[float]) -> tuple[float, float | None]:
    """Return the quotient of two means over the same clips, and its standard error to first order (None for one clip).

    The clips are paired: a clip that is hard for both moves the quotient little.
    """
    over, under = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    ratio = float(over.mean() / under.mean())
    error = mean_and_error(over - ratio * under)[1]
    return ratio, None if error is None else error / abs(float(under.mean()))


def summarise(clips: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return for each number its mean as `name` and its standard error as `name_stderr`.

    If only some clips have the number, `name_clips` states how many.
    """
    if not clips:
        raise ValueError("clips: found none, expected at least one")
    summary: dict[str, float | None] = {}
    for name in dict.fromkeys(name for clip in clips for name in clip):
        values = [clip[name] for clip in clips if name in clip]
        try:
            summary[name], summary[f"{name}_stderr"] = mean_and_error(values)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if len(values) < len(clips):
            summary[f"{name}_clips"] = len(values)
    return summary


def mean_curves(clips: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, list[float | None]]]:
    """Return for each curve of the clips its mean and standard error frame by frame."""
    names = dict.fromkeys(name for clip in clips for name in clip)
    found = {}
    for name in names:
        frames = [mean_and_error(values) for values in np.stack([clip[name] for clip in clips if name in clip]).T]
        found[name] = {"mean": [mean for mean, _ in frames], "stderr": [error for _, error in frames]}
    return found


def predictor_table(predictors: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, str | float | None]]:
    """Return a row per predictor, from the numbers of its clips: name, kind, clips, means and standard errors."""
    return [
        {"name": name, "kind": KINDS.get(name, "reference"), "clips": len(clips), **summarise(clips)}
        for name, clips in predictors.items()
    ]
