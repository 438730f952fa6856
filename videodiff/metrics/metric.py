"""A metric: a pure function of one case, and the meaning of each of its numbers.

    @metric({"sharpness": Quantity("higher", "levels", 0.0)})
    def sharpness(case: Case) -> dict[str, float]:
        return {"sharpness": float(np.abs(np.diff(case.frames.astype(float), axis=2)).mean())}

A file of `conf/metric` names it, or `+metric.mine._target_=my_module.sharpness` on the command line. Every table,
ranking and target takes direction, unit and range from here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from videodiff.metrics.weights import NOTHING, Weights
from videodiff.worlds.scene import Scene

CONTINUATION, TEXT_TO_VIDEO = "continuation", "text_to_video"
TASKS = (CONTINUATION, TEXT_TO_VIDEO)
DIRECTIONS = ("higher", "lower")
# The clips of a dataset that a metric measures: all, only those with the true scene of a world, or only the others.
CLIPS = ("all", "worlds", "footage")
# What stands beside a number in evaluation.json, under its name and one of these.
BESIDE = ("_stderr", "_clips")
# Names in evaluation.json that are not numbers of a metric.
TAKEN = (
    *("name", "kind", "clips", "table", "targets", "metrics", "checkpoint", "given_frames", "seed", "batch"),
    *("intervals", "curves", "by_balls", "left_out", "dataset", "clips_sha256", "shape"),
)
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Quantity:
    """The meaning of a number: which direction is better, its unit (empty for a pure number) and its range."""

    better: str
    unit: str = ""
    least: float = -math.inf
    most: float = math.inf

    def __post_init__(self) -> None:
        if self.better not in DIRECTIONS:
            raise ValueError(f"better: found {self.better!r}, expected higher or lower")
        if not self.least < self.most:
            raise ValueError(f"range: found {self.least} to {self.most}, expected a least below a most")

    @property
    def more_is_better(self) -> bool:
        return self.better == "higher"

    def holds(self, value: float) -> bool:
        """Return whether a value lies in the range, up to rounding; other code checks that it is finite."""
        return not math.isfinite(value) or self.least - slack(self.least) <= value <= self.most + slack(self.most)

    def record(self) -> dict[str, Any]:
        """Return the quantity as plain JSON values; an open end of the range is null."""
        ends = [end if math.isfinite(end) else None for end in (self.least, self.most)]
        return {"better": self.better, "unit": self.unit, "range": ends}


def slack(end: float) -> float:
    """Return how far rounding may exceed an end of a range."""
    return 1e-6 * max(abs(end), 1.0) if math.isfinite(end) else 0.0


def read_quantity(record: Any, where: str) -> Quantity:
    """Read the result of `Quantity.record`; a record of another form is a ValueError that begins with `where`."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: found {str(record)[:60]!r}, expected an object with better, unit and range")
    ends = record.get("range", [None, None])
    if not isinstance(ends, list) or len(ends) != 2 or not all(end is None or is_number(end) for end in ends):
        raise ValueError(f"{where}.range: found {str(ends)[:60]!r}, expected [least, most], null for an open end")
    unit = record.get("unit", "")
    if not isinstance(unit, str):
        raise ValueError(f"{where}.unit: found {str(unit)[:60]!r}, expected text")
    if record.get("better") not in DIRECTIONS:
        raise ValueError(f"{where}.better: found {str(record.get('better'))[:60]!r}, expected higher or lower")
    least, most = (-math.inf if ends[0] is None else ends[0], math.inf if ends[1] is None else ends[1])
    try:
        return Quantity(record["better"], unit, float(least), float(most))
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Case(NamedTuple):
    """One clip to measure: its frames uint8 `t h w c` and the facts about it.

    `key`: its name in the dataset. `truth`: the frames in the dataset. `scene`: their exact state if they are from a
    world. `given`: the number of first frames that were given, 0 for a clip sampled from its caption alone.
    """

    key: str
    frames: np.ndarray
    truth: np.ndarray
    caption: str
    fps: float
    given: int
    scene: Scene | None


@dataclass(frozen=True)
class Metric:
    """A measure, the meaning of its numbers, and where they are written.

    tasks: the tasks whose samples are measured. A metric of one task writes its numbers under their own names, and a
    metric of continuation also into the table of predictors. A metric of several tasks writes `<task>_<name>`, and
    `truth_<name>` for the true clips.
    clips: one of `CLIPS`. lacks: returns why a case is left out, empty if it is measured.
    references: further rows of the table, each with the function that measures it.
    beside: numbers of table rows that are also written as figures: name -> (row of the table, number).
    ratios: figures that are the quotient of two others: name -> (numerator, denominator).
    curve: measures every frame of a clip: name -> (frames,); for a metric of one task.
    by_balls: numbers that are also written for the clips with one ball, two balls, ...; for a metric of one task.
    weights: the network and packages that it needs.
    """

    measure: Callable[[Case], Numbers]
    quantities: Mapping[str, Quantity]
    tasks: tuple[str, ...] = TASKS
    clips: str = "all"
    lacks: Callable[[Case], str] = lambda case: ""
    references: Mapping[str, Callable[[Case], Numbers]] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    curve: Callable[[Case], Mapping[str, np.ndarray]] | None = None
    by_balls: tuple[str, ...] = ()
    weights: Weights = NOTHING
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.quantities, *self.beside, *self.ratios]
        for name in names:
            if not name.isidentifier() or name in TAKEN or name.endswith(BESIDE):
                raise ValueError(f"found the number {name!r}, expected a name of letters, digits and _ of its own")
        if not self.quantities or not all(isinstance(each, Quantity) for each in self.quantities.values()):
            raise ValueError("found numbers without a Quantity, expected one for each number: Quantity('higher') ...")
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"found the tasks {list(self.tasks)}, expected some of {', '.join(TASKS)}")
        if self.clips not in CLIPS:
            raise ValueError(f"found clips={self.clips!r}, expected one of {', '.join(CLIPS)}")
        single = self.clips == "worlds" and len(self.tasks) == 1
        if self.by_balls and not (single and {*self.by_balls} <= self.quantities.keys()):
            raise ValueError(f"found by_balls={self.by_balls}, expected numbers of a metric of worlds with one task")
        if self.references and not self.in_table:
            raise ValueError(f"found references, expected them only in a metric with tasks=[{CONTINUATION}]")

    def __call__(self, case: Case, **settings: Any) -> Numbers:
        """Measure one case."""
        return self.measure(case, **settings)

    @property
    def in_table(self) -> bool:
        """Whether the numbers stand in the table of predictors."""
        return self.tasks == (CONTINUATION,)

    def with_settings(self, **settings: Any) -> Metric:
        """Return the metric with arguments of its function fixed."""
        return replace(self, measure=partial(self.measure, **settings), settings={**self.settings, **settings})

    def parameters(self) -> list[inspect.Parameter]:
        """Return the arguments of its function besides the case."""
        return list(inspect.signature(self.measure).parameters.values())[1:]

    def lack(self) -> str:
        """Return why the metric cannot run at all, empty if it can."""
        return self.weights.lack(self.settings)

    def unfit(self, first: Case, count: int | None) -> str:
        """Return why clips cannot be measured, empty if they can; try the first one if the metric has a network."""
        if not self.weights.what or self.lacks(first):
            return ""
        return self.weights.fault(self.settings, lambda: self.measure(first))

    def figures(self) -> dict[str, Quantity]:
        """Return the quantity of each figure that this metric may write into evaluation.json, by its name there."""
        several = [*self.tasks, "truth"] if len(self.tasks) > 1 else []
        found = {f"{task}_{name}": each for task in several for name, each in self.quantities.items()}
        found = found or dict(self.quantities)
        found |= {name: self.quantities[number] for name, (_, number) in self.beside.items()}
        # Numerator and denominator have the same unit, so the ratio is a pure number with the numerator's direction.
        return found | {name: Quantity(found[above].better) for name, (above, _) in self.ratios.items()}


def metric(quantities: Mapping[str, Quantity], **how: Any) -> Callable[[Callable[..., Numbers]], Metric]:
    """Return a decorator that turns a function of a case into a `Metric`; `how`: further fields of it."""
    return lambda measure: Metric(measure, dict(quantities), **how)
