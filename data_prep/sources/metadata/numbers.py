"""Numbers as metadata writes them: one reading, whatever the file that holds them, exactly the decimals written."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from data_prep.books.request import InputError, show

NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?")
COMMA = re.compile(r"[+-]?[0-9.]*[0-9](?:,[0-9]+)+(?:\.[0-9]*)?")


def parse_number(value: Any, reason: str = "bad-number", expected: str = "a finite number") -> Fraction:
    """Return a number, or the number that a text is, blanks around it left out; anything else is an InputError.

    A comma is refused: it parts thousands in one country and decimals in another. NaN, infinities and truth values are
    no numbers.
    """
    if isinstance(value, str):
        text = value.strip()
        if NUMBER.fullmatch(text):
            return Fraction(text)
        if COMMA.fullmatch(text):
            expected += " with a decimal point; a comma is ambiguous"
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 400:
        return Fraction(value)
    elif isinstance(value, float) and math.isfinite(value):
        return Fraction(repr(float(value)))
    elif isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < 100:
        return Fraction(value)
    elif isinstance(value, Fraction):
        return value
    raise InputError(reason, f"found {show(value)}, expected {expected}")


def checked_number(value: Any) -> float:
    """Return a finite number; anything else is an InputError."""
    return float(parse_number(value))


def noted(name: str, value: Any, notes: dict[str, Any], omitted: list[str]) -> None:
    """Note a number under a name; a value that is no number goes to `omitted` by name, and None is ignored.

    A bad note never rejects its clip.
    """
    if value is None:
        return
    try:
        notes[name] = checked_number(value)
    except InputError:
        omitted.append(name)
