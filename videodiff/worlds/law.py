"""The law of a world: how its balls move, the ranges of its training set, and the words of its captions.

The record of the law is part of the truth of every clip. Metrics read it there, so they need not know any world.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Range = tuple[float, float]
# Measures that only some worlds have: PhyWorld's own velocity error, and errors before and after a contact.
MEASURES = ("phyworld", "contact")


@dataclass(frozen=True)
class Grammar:
    """The captions of a world: `a [size] colour ball verb direction [pace]`, one phrase per ball, joined by `and`.

    directions: radians from the right, counterclockwise; sizes: ranges of the radius in units; paces: ranges of the
    speed in units per second. `most` balls are named in one caption.
    """

    colours: tuple[str, ...]
    verbs: tuple[str, ...]
    directions: Mapping[str, float]
    sizes: Mapping[str, Range] = field(default_factory=dict)
    paces: Mapping[str, Range] = field(default_factory=dict)
    most: int = 1

    def words(self) -> list[str]:
        """Return every word a caption can contain."""
        joint = ["and"] if self.most > 1 else []
        return ["a", *joint, "ball", *self.verbs, *self.sizes, *self.colours, *self.directions, *self.paces]


@dataclass(frozen=True)
class Law:
    """The law of a world: its name, the forces on balls besides elastic collision, and how its clips are measured.

    gravity: units/s^2 along y; speeds: the speeds of the training set in units/s; measures: some of `MEASURES`.
    """

    name: str
    speeds: Range
    grammar: Grammar
    walls: bool = False
    gravity: float = 0.0
    measures: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the law as plain JSON values; `walls` and `gravity` stand beside it in the truth."""
        grammar = self.grammar
        return {
            "name": self.name,
            "speeds": list(self.speeds),
            "measures": list(self.measures),
            "grammar": {
                "colours": list(grammar.colours),
                "verbs": list(grammar.verbs),
                "directions": dict(grammar.directions),
                "sizes": {word: list(limits) for word, limits in grammar.sizes.items()},
                "paces": {word: list(limits) for word, limits in grammar.paces.items()},
                "most": grammar.most,
            },
        }


class World(Protocol):
    """The protocol of the classes in `conf/world`: scenes by seed, all under one law."""

    law: Law

    def words(self) -> list[str]:
        """Return every word a caption can contain."""

    def scene(self, seed: int) -> Any:
        """Return the `Scene` of this seed, the same on every machine, with the law of the world."""


def read_law(record: Any, walls: bool, gravity: float) -> Law:
    """Read the result of `Law.record`; a record of another form is a ValueError that names the key."""
    top = fields(record, "world", ("name", "speeds", "measures", "grammar"))
    words = fields(top["grammar"], "world.grammar", ("colours", "verbs", "directions", "sizes", "paces", "most"))
    measures = texts(top["measures"], "world.measures")
    if unknown := [name for name in measures if name not in MEASURES]:
        raise ValueError(f"world.measures: found {unknown[0]!r}, expected some of {', '.join(MEASURES)}")
    most = words["most"]
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"world.grammar.most: found {shown(most)}, expected a number of balls")
    grammar = Grammar(
        texts(words["colours"], "world.grammar.colours"),
        texts(words["verbs"], "world.grammar.verbs"),
        {word: number(angle, where) for word, angle, where in entries(words["directions"], "world.grammar.directions")},
        {word: limits(pair, where) for word, pair, where in entries(words["sizes"], "world.grammar.sizes")},
        {word: limits(pair, where) for word, pair, where in entries(words["paces"], "world.grammar.paces")},
        most,
    )
    if not isinstance(top["name"], str) or not top["name"]:
        raise ValueError(f"world.name: found {shown(top['name'])}, expected the name of a world")
    return Law(top["name"], limits(top["speeds"], "world.speeds"), grammar, walls, gravity, measures)


def fields(value: Any, where: str, names: Sequence[str]) -> Mapping[str, Any]:
    """Return a mapping that has all these keys."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: found {shown(value)}, expected an object with {', '.join(names)}")
    for name in names:
        if name not in value:
            raise ValueError(f"{where}.{name}: found nothing, expected it beside {', '.join(map(str, value))}")
    return value


def entries(value: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    """Yield word, value and place of each entry of a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: found {shown(value)}, expected an object word -> value")
    yield from ((str(word), item, f"{where}.{word}") for word, item in value.items())


def texts(value: Any, where: str) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: found {shown(value)}, expected a list of words")
    return tuple(value)


def limits(value: Any, where: str) -> Range:
    """Return a range of two numbers."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{where}: found {shown(value)}, expected [least, most]")
    least, most = (number(item, where) for item in value)
    return least, most


def number(value: Any, where: str) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: found {shown(value)}, expected a number")
    return float(value)


def shown(value: Any) -> str:
    """Return a value short enough for a message."""
    return repr(value)[:60]
