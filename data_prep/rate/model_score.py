"""A score by a network: a file of `kinds/`, and the path of its model under `models` in conf/prep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules

import numpy as np

from data_prep.rate import kinds
from data_prep.score.pixel_score import Scale

# From frames uint8 `t h w c` and the captions that the source gives to the numbers of a clip.
Network = Callable[[np.ndarray, Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True)
class ModelScore:
    """What a file of `kinds/` holds as `MODEL`; its name is the key of the model's folder under `models`.

    scales: what each of its numbers means, by name. load: `load(path, device=..., **parts)` gives the network; heavy
    libraries are imported there and not before. parts: further files that the network may have, by their key under
    `models`, with what they add to the numbers. reads_captions: other captions of a clip need another look at it.
    """

    scales: Mapping[str, Scale]
    load: Callable[..., Network]
    parts: Mapping[str, Mapping[str, Scale]] = field(default_factory=dict)
    reads_captions: bool = False

    def numbers(self, key: str, kind: str) -> list[str]:
        """Return the numbers that the model of this kind, or the part of this key, brings."""
        return list(self.scales if key == kind else self.parts[key])


def model_scores() -> dict[str, ModelScore]:
    """Return every score of `kinds/` by its name."""
    names = sorted(module.name for module in iter_modules(kinds.__path__))
    return {name: import_module(f"{kinds.__name__}.{name}").MODEL for name in names}


def numbers_by_key() -> dict[str, list[str]]:
    """Return the numbers that the model of each key under `models` brings."""
    found = model_scores()
    return {key: score.numbers(key, kind) for kind, score in found.items() for key in (kind, *score.parts)}


def rated_numbers() -> set[str]:
    """Return every number that a model may give."""
    return {number for numbers in numbers_by_key().values() for number in numbers}
