"""The kinds of values in the configuration: a type and a range, in the words of the error message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from videodiff.verbs.config.names import answer, meant


class Fault(NamedTuple):
    """A wrong value: its place, what was found there, and what was expected."""

    place: str
    found: Any
    expected: str
    no_key: bool = False


class Missing:
    """A value that is not given yet, or depends on one that is not."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()
Check = Callable[[str, Any], Iterator[Fault]]


@dataclass(frozen=True)
class Kind:
    """A kind of value: `expected` in words, and a function that yields the faults of a value.

    `literal`: on a command line the value is text, even if it looks like something else; `names`: it is the name of a
    file or folder, or a URL. `keys`: the keys that a mapping may have, `needed`: those that it must have, `rest`: the
    kind of any other key; `whole`: a mapping on a command line replaces the one of the configuration instead of
    changing some of its keys.
    """

    expected: str
    check: Check
    literal: bool = False
    names: bool = False
    keys: Mapping[str, Kind] | None = None
    rest: Kind | None = None
    optional: bool = False
    advice: str = ""
    whole: bool = False
    needed: Sequence[str] = ()


def kind(expected: str, accepts: Callable[[Any], bool], **how: Any) -> Kind:
    """Return the kind of the values that a function accepts."""

    def check(place: str, value: Any) -> Iterator[Fault]:
        if value is not MISSING and not accepts(value):
            yield Fault(place, value, expected)

    return Kind(expected, check, **how)


def whole(least: int | None = None, most: int | None = None) -> Kind:
    """Return the kind of whole numbers in a range."""

    def accepts(value: Any) -> bool:
        return is_whole(value) and (least is None or value >= least) and (most is None or value <= most)

    return kind("a whole number" + limits(least, most), accepts)


def even(least: int) -> Kind:
    """Return the kind of even numbers from one on."""
    accepts = lambda value: is_whole(value) and value >= least and value % 2 == 0  # noqa: E731
    return kind(f"an even number of at least {least}", accepts)


def number(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> Kind:
    """Return the kind of finite numbers in a range."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return kind("a number" + limits(least, most, above, below), accepts)


def limits(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> str:
    """Return the words for a range."""
    if least is not None and most is not None:
        return f" from {least} to {most}"
    words = [(least, "of at least"), (most, "of at most"), (above, "above"), (below, "below")]
    found = [f"{word} {limit}" for limit, word in words if limit is not None]
    return f" {' and '.join(found)}" if found else ""


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


FLAG = kind("true or false", lambda value: isinstance(value, bool))
# The command line turns numbers that are meant as text into text; in files they need quotes.
TEXT = kind("text", lambda value: isinstance(value, str), literal=True)
NAME = kind("text, not empty", lambda value: isinstance(value, str) and value.strip() != "", literal=True)
PLACE = kind(
    "the name of a file or folder, or a URL",
    lambda value: isinstance(value, str) and value.strip() != "" and "\0" not in value,
    literal=True,
    names=True,
)
HERE = kind(
    "the name of a file or folder on this machine",
    lambda value: not list(PLACE.check("", value)) and "://" not in value,
    literal=True,
    names=True,
)
ANYTHING = kind("anything", lambda value: True)


def choice(*values: str) -> Kind:
    """Return the kind of these words."""
    return kind(
        f"one of {', '.join(values)}" if len(values) > 2 else " or ".join(values), lambda value: value in values
    )


def optional(inner: Kind) -> Kind:
    """Return the kind of these values or null."""
    expected = f"{inner.expected}, or null"

    def check(place: str, value: Any) -> Iterator[Fault]:
        if value is not None:
            for fault in inner.check(place, value):
                yield fault._replace(expected=expected) if fault.place == place else fault

    return Kind(expected, check, inner.literal, inner.names, inner.keys, inner.rest, optional=True, whole=inner.whole)


def many(inner: Kind, least: int = 0, most: int | None = None) -> Kind:
    """Return the kind of lists with items of a kind."""
    count = f"{least} " if most == least else f"at least {least} " if least else ""
    expected = f"a list of {count}({inner.expected})" if count else f"a list: [{inner.expected}, ...]"

    def check(place: str, value: Any) -> Iterator[Fault]:
        if value is MISSING:
            return
        if not isinstance(value, (list, tuple)) or len(value) < least or (most is not None and len(value) > most):
            yield Fault(place, value, expected)
        else:
            for i, item in enumerate(value):
                yield from inner.check(f"{place}[{i}]", item)

    return Kind(expected, check)


def either(*kinds: Kind) -> Kind:
    """Return the kind of values that one of these kinds accepts."""
    expected = ", or ".join(each.expected for each in kinds)

    def check(place: str, value: Any) -> Iterator[Fault]:
        found = [list(each.check(place, value)) for each in kinds]
        if all(found):
            # For a list with one bad item, the fault of the item says more than that a list is wrong.
            inside = [faults for faults in found if all(fault.place != place for fault in faults)]
            yield from inside[0] if inside else [Fault(place, value, expected)]

    return Kind(expected, check, any(each.literal for each in kinds), any(each.names for each in kinds))


def table(key: Kind, inner: Kind, least: int = 0, whole: bool = False) -> Kind:
    """Return the kind of mappings with keys and values of these kinds."""

    def check(place: str, value: Any) -> Iterator[Fault]:
        if value is MISSING:
            return
        if not isinstance(value, Mapping) or len(value) < least:
            yield Fault(place, value, f"{{key: {inner.expected}}}")
            return
        for name, item in value.items():
            yield from key.check(f"{place}.{name}", name)
            yield from inner.check(f"{place}.{name}", item)

    return Kind(f"{{key: {inner.expected}}}", check, rest=inner, keys={}, whole=whole)


def record(needed: Sequence[str] = (), rest: Kind | None = None, **keys: Kind) -> Kind:
    """Return the kind of mappings with these keys; only the keys in `needed` are required."""
    expected = f"a mapping with {', '.join(keys)}"

    def check(place: str, value: Any) -> Iterator[Fault]:
        if value is MISSING:
            return
        if not isinstance(value, Mapping):
            yield Fault(place, value, expected)
            return
        where = f"{place}." if place else ""
        # A mistyped name comes first: it tells more than the name that is therefore missing.
        if rest is None:
            yield from (unknown(f"{where}{name}", str(name), value[name], keys) for name in value if name not in keys)
        yield from (Fault(f"{where}{name}", MISSING, keys[name].expected) for name in needed if name not in value)
        for name, item in value.items():
            if name in keys or rest is not None:
                yield from keys.get(name, rest).check(f"{where}{name}", item)

    return Kind(expected, check, keys=keys, rest=rest, needed=needed)


def unknown(place: str, name: str, value: Any, known: Mapping[str, Kind]) -> Fault:
    """Return the fault of an unknown key, with the known keys that it may mean."""
    keys = meant(name, known)
    if keys and (advice := known[keys[0]].advice):
        return Fault(place, value, f"{keys[0]} would have no effect: {advice}", no_key=True)
    usable = [key for key, kind in known.items() if not kind.advice]
    other = answer(name, known) or f"expected {' or '.join(usable) or 'none at all'}"
    return Fault(place, value, other, no_key=True)


def instead(advice: str) -> Kind:
    """Return the kind of a key that must not be set; the advice names what decides instead."""

    def check(place: str, value: Any) -> Iterator[Fault]:
        yield Fault(place, value, f"nothing, as it has no effect: {advice}")

    return Kind(f"nothing, as it has no effect: {advice}", check, advice=advice)
