"""The numbers of evaluation.json: headline figures against their targets and the table of predictors.

    {"velocity_error": 0.041, "velocity_error_stderr": 0.003, "clips": 256, "dataset": "datasets/mine",
     "targets": {"velocity_error": 0.05},
     "metrics": {"velocity_error": {"better": "lower", "unit": "units/s", "range": [0, null]}},
     "table": [{"name": "model", "kind": "model", "clips": 256, "velocity_error": 0.041},
               {"name": "last frame held", "kind": "reference", "velocity_error": 2.5},
               {"name": "ground truth", "kind": "floor", "velocity_error": 0.0003}]}

`metrics` states the meaning of a figure: which direction is better, its unit, its range, and the `settings` that decide
it if there are any. A target is the value to stay below, or to reach if higher is better. The kind of a row is model,
reference, floor or ceiling. `<name>_clips` is the number of clips of a figure that was not measured on all of them.
`by_balls` has such rows for the clips with one ball, two balls, ... `intervals` are the 95 % intervals of distances of
sets, `curves` figures frame by frame, `left_out` the metrics that could not be measured, each with its reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from videodiff.metrics.metric import BESIDE, Quantity, read_quantity

KINDS = ("model", "reference", "floor", "ceiling")
NOT_FLAT = ("table", "targets", "metrics", "intervals", "curves", "by_balls", "left_out")
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Measured:
    """A value with its standard error, number of clips, target and meaning, if it has them."""

    name: str
    value: float
    stderr: float | None = None
    clips: float | None = None
    target: float | None = None
    quantity: Quantity | None = None
    interval: tuple[float, float] | None = None

    @property
    def more_is_better(self) -> bool | None:
        """Whether more is better; None if the meaning of the number is unknown."""
        return None if self.quantity is None else self.quantity.more_is_better

    @property
    def arrow(self) -> str:
        """The direction that is better."""
        return {None: "", True: "↑", False: "↓"}[self.more_is_better]

    @property
    def unit(self) -> str:
        return "" if self.quantity is None else self.quantity.unit

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None or self.more_is_better is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value <= self.target

    @property
    def text(self) -> str:
        """The value with as many digits as its standard error justifies."""
        return rounded(self.value, self.stderr)

    @property
    def error_text(self) -> str:
        return "" if self.stderr is None else f" ± {rounded(self.stderr, self.stderr)}"

    @property
    def interval_text(self) -> str:
        return "" if self.interval is None else f" [{', '.join(rounded(end, self.stderr) for end in self.interval)}]"

    @property
    def target_text(self) -> str:
        sign = {None: "", True: "≥ ", False: "≤ "}[self.more_is_better]
        return "" if self.target is None else f"{sign}{self.target:g}"


@dataclass(frozen=True)
class Row:
    """A predictor of the table: a measured value for some of the columns, over so many clips."""

    name: str
    kind: str
    clips: float | None
    cells: dict[str, Measured]


def rounded(value: float, stderr: float | None) -> str:
    """Write a number to two digits of its standard error, or to three digits of its own."""
    if not math.isfinite(value):
        return "not finite"
    if stderr is not None and math.isfinite(stderr) and stderr > 0:
        return f"{value:,.{max(0, 1 - math.floor(math.log10(stderr)))}f}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def plain(name: str) -> str:
    """Write a metric's name as words."""
    return re.sub(r"[_/]+", " ", name)


def meanings(evaluation: dict[str, Any], where: Path, known: Mapping[str, Quantity] = NOTHING) -> dict[str, Quantity]:
    """Return the meaning of the figures of an evaluation.

    `known` replaces `metrics` in old evaluations that have none.
    """
    records = evaluation.get("metrics")
    if records is None:
        return dict(known)
    if not isinstance(records, dict):
        raise ValueError(f"{where}: metrics: found a {type(records).__name__}, expected an object name -> quantity")
    return {name: read_quantity(record, f"{where}: metrics.{name}") for name, record in records.items()}


def figures(
    evaluation: dict[str, Any], where: Path, quantities: Mapping[str, Quantity] = NOTHING
) -> tuple[list[Measured], dict[str, str]]:
    """Return the flat numbers in their order, with their targets, and the flat texts beside them."""
    flat = {key: value for key, value in evaluation.items() if key not in NOT_FLAT}
    texts = {key: str(value) for key, value in flat.items() if isinstance(value, (str, bool))}
    numbers = {key: value for key, value in flat.items() if key not in texts}
    targets = evaluation.get("targets") or {}
    if not isinstance(targets, dict):
        raise ValueError(f"{where}: targets: found a {type(targets).__name__}, expected an object name -> number")
    for name in targets:
        number(targets[name], f"{where}: targets.{name}")
        if name not in numbers:
            raise ValueError(f"{where}: targets.{name}: found no figure of this name, expected one beside the targets")
        if name not in quantities:
            raise ValueError(
                f"{where}: targets.{name}: found no metrics.{name} that says which direction is better, expected one"
            )
    ends = intervals(evaluation, where)
    found = measured(numbers, f"{where}: ", quantities, targets)
    return [replace(one, interval=ends.get(name)) for name, one in found.items()], texts


def intervals(evaluation: dict[str, Any], where: Path) -> dict[str, tuple[float, float]]:
    """Return the intervals of the figures that have one."""
    records = evaluation.get("intervals") or {}
    if not isinstance(records, dict):
        raise ValueError(
            f"{where}: intervals: found a {type(records).__name__}, expected an object name -> [low, high]"
        )
    for name, ends in records.items():
        if not isinstance(ends, list) or len(ends) != 2:
            raise ValueError(f"{where}: intervals.{name}: found {str(ends)[:60]!r}, expected [low, high]")
    return {name: tuple(number(end, f"{where}: intervals.{name}") for end in ends) for name, ends in records.items()}


def left_out(evaluation: dict[str, Any], where: Path) -> list[str]:
    """Return why each metric that could not be measured is left out."""
    reasons = evaluation.get("left_out") or {}
    if not isinstance(reasons, dict):
        raise ValueError(f"{where}: left_out: found a {type(reasons).__name__}, expected an object name -> reason")
    return [str(reason) for reason in reasons.values()]


def rows(
    evaluation: dict[str, Any], where: Path, quantities: Mapping[str, Quantity] = NOTHING, key: str = "table"
) -> list[Row]:
    """Return the rows of a table: the model, the references, then floor and ceiling."""
    entries = evaluation.get(key) or []
    if not isinstance(entries, list):
        raise ValueError(f"{where}: {key}: found a {type(entries).__name__}, expected a list of rows")
    return sorted(
        (row(entry, f"{where}: {key}[{i}]", quantities) for i, entry in enumerate(entries)),
        key=lambda r: KINDS.index(r.kind),
    )


def row(entry: Any, where: str, quantities: Mapping[str, Quantity] = NOTHING) -> Row:
    """Check one row of the table."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{where}: found {str(entry)[:60]!r}, expected an object with a name")
    kind = entry.get("kind", "model" if entry["name"] == "model" else "reference")
    if kind not in KINDS:
        raise ValueError(f"{where}.kind: found {kind!r}, expected one of {', '.join(KINDS)}")
    numbers = {key: value for key, value in entry.items() if key not in ("name", "kind", "clips")}
    clips = None if entry.get("clips") is None else number(entry["clips"], f"{where}.clips")
    return Row(entry["name"], kind, clips, measured(numbers, f"{where}.", quantities))


def measured(
    numbers: dict[str, Any],
    where: str,
    quantities: Mapping[str, Quantity],
    targets: Mapping[str, float] = NOTHING,
) -> dict[str, Measured]:
    """Join every number to its `_stderr`, `_clips`, target and meaning; null means not measured."""
    values = {key: number(value, where + key) for key, value in numbers.items() if value is not None}
    return {
        name: Measured(
            name, value, *(values.get(name + end) for end in BESIDE), targets.get(name), quantities.get(name)
        )
        for name, value in values.items()
        if not name.endswith(BESIDE)
    }


def number(value: Any, where: str) -> float:
    """Return a JSON number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: found {str(value)[:60]!r}, expected a number")
    return float(value)


def columns(table: Sequence[Row]) -> list[Measured]:
    """Return one entry for each column, in the order in which the rows name them."""
    return list({name: cell for row in table for name, cell in row.cells.items()}.values())


def best(table: Sequence[Row]) -> dict[str, float]:
    """Return the best value of each column whose direction is known; floor and ceiling do not compete."""
    competing = [row for row in table if row.kind in ("model", "reference")]
    found = {}
    for column in [column for column in columns(table) if column.more_is_better is not None]:
        values = [row.cells[column.name].value for row in competing if column.name in row.cells]
        values = [value for value in values if math.isfinite(value)]
        if values:
            found[column.name] = max(values) if column.more_is_better else min(values)
    return found
