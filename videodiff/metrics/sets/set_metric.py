"""A metric of a whole set of clips: the distance of their features from the features of the true clips."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from videodiff.metrics.metric import CLIPS, TASKS, Case, Quantity
from videodiff.metrics.sets.bootstrap import Distance, Estimate, estimate
from videodiff.metrics.weights import Weights
from videodiff.words import count_text

Describe = Callable[..., np.ndarray]
TRUTH = "truth"
# The default number of resamples of the bootstrap.
RESAMPLES = 100
# Of one clip, or of one resample, no error can be told.
LEAST = 2
# The settings of a set metric besides the arguments of `describe`.
OWN = ("least", "resamples")


@dataclass(frozen=True)
class SetMetric:
    """The distance of the clips of each task from the true clips, written as `<task>_<name>`.

    `truth_<name>` is the distance between two halves of the true clips: of half as many clips, so its bias is larger.

    describe: takes clips uint8 `t h w c` and settings, returns features (clips, rows, width).
    distance: takes two arrays of features. fewest: the least number of clips; None: more rows than features, because a
    Fréchet distance needs covariances of full rank.
    """

    name: str
    quantity: Quantity
    describe: Describe
    distance: Distance
    weights: Weights
    fewest: int | None = None
    tasks: tuple[str, ...] = TASKS
    clips: str = "all"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clips not in CLIPS:
            raise ValueError(f"found clips={self.clips!r}, expected one of {', '.join(CLIPS)}")

    def __call__(self, clips: Sequence[np.ndarray], **settings: Any) -> np.ndarray:
        """Return the features of clips."""
        return self.describe(clips, **settings)

    def figures(self) -> dict[str, Quantity]:
        """Return the quantity of each figure that this metric may write, by its name in evaluation.json."""
        return {f"{task}_{self.name}": self.quantity for task in (*self.tasks, TRUTH)}

    def parameters(self) -> list[inspect.Parameter]:
        """Return the settings that this metric takes."""
        own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in OWN]
        return [*list(inspect.signature(self.describe).parameters.values())[1:], *own]

    def with_settings(self, **settings: Any) -> SetMetric:
        """Return the metric with settings fixed; `least`: fewest clips, `resamples`: draws of the bootstrap."""
        for name in OWN:
            value = settings.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < LEAST):
                raise ValueError(f"{name}: found {value!r}, expected at least {LEAST}")
        return replace(self, settings={**self.settings, **settings})

    def lack(self) -> str:
        """Return why the metric cannot run at all, empty if it can."""
        return self.weights.lack(self.settings)

    def features(self, cases: Sequence[Case]) -> np.ndarray:
        """Return the features (clips, rows, width) of the frames of clips; ValueError if one has no finite ones."""
        chosen = {name: value for name, value in self.settings.items() if name not in OWN}
        found = self.describe([case.frames for case in cases], **chosen)
        for case, features in zip(cases, found, strict=True):
            if not np.isfinite(features).all():
                raise ValueError(f"clip {case.key}: found features that are not finite")
        return found

    def unfit(self, first: Case, count: int | None) -> str:
        """Return why `count` clips cannot be measured, empty if they can; try the first one in the network.

        count None: it is not known yet.
        """
        features = []
        if fault := self.weights.fault(self.settings, lambda: features.append(self.features([first]))):
            return fault
        _, rows, width = features[0].shape
        full, own = math.ceil((width + 1) / rows), self.settings.get("least") or self.fewest
        least = own or max(full, LEAST)
        if count is None or count >= least:
            return ""
        why = f", more rows than its {count_text(width, 'feature')}" if not own and least == full else ""
        fewer = f", or least={count} to measure fewer, which makes it larger" if count >= LEAST else ""
        return f"found {count_text(count, 'clip')}, expected at least {least}{why}; clips={least}{fewer}"

    def measure(self, truth: np.ndarray, made: np.ndarray, paired: bool) -> Estimate:
        """Return the distance of two sets of features, with its interval."""
        return estimate(self.distance, truth, made, self.settings.get("resamples") or RESAMPLES, paired=paired)

    def compare(self, features: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
        """Return the estimate of each figure: every task against the truth, and the truth in two halves.

        features: those of the clips of each task and of the truth, in the same order.
        """
        truth = features[TRUTH]
        tasks = [task for task in features if task != TRUTH]
        found = {f"{task}_{self.name}": self.measure(truth, features[task], paired=True) for task in tasks}
        if len(truth) >= 4:
            found[f"{TRUTH}_{self.name}"] = self.measure(truth[::2], truth[1::2], paired=False)
        return found
