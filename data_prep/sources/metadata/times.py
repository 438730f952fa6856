"""Times as metadata writes them, to exact seconds: a float would put a cut one frame off."""

from __future__ import annotations

import datetime
import math
import re
from fractions import Fraction
from typing import Any

from data_prep.books.request import InputError, show
from data_prep.sources.metadata.numbers import parse_number

# Subtitles write a comma, pandas writes days.
CLOCK = re.compile(r"(?:([0-9]{1,4}) days? )?([0-9]{1,2}):([0-5][0-9]):([0-5][0-9])(?:[.,]([0-9]{1,18}))?")
# Longer than any video: no later computation overflows.
LONGEST = 10**12
EPOCH = datetime.date(1970, 1, 1)
ISO8601 = re.compile(
    r"P(?=.)(?:([0-9]{1,6})D)?(?:T(?=.)(?:([0-9]{1,6})H)?(?:([0-9]{1,6})M)?(?:([0-9]{1,6}(?:[.,][0-9]{1,9})?)S)?)?"
)


def parse_clock(text: Any) -> Fraction:
    """Return the seconds of `H:MM:SS.mmm` or `HH:MM:SS.mmm`; `.5` is half a second, not five milliseconds."""
    found = CLOCK.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise InputError("bad-time", f"found {show(text)}, expected H:MM:SS.mmm or HH:MM:SS.mmm")
    days, hours, minutes, seconds, decimals = found.groups(default="")
    # Make one fraction only: one dataset has two hundred million of these.
    scale, hours = 10 ** len(decimals), int(hours) + 24 * int(days or 0)
    return Fraction(((60 * hours + int(minutes)) * 60 + int(seconds)) * scale + int(decimals or 0), scale)


def parse_seconds(value: Any) -> Fraction:
    """Return seconds, given as a number or as its decimals, as exactly those decimals: 0.1 is a tenth."""
    seconds = parse_number(value, "bad-time", "seconds from 0 on")
    if not 0 <= seconds < LONGEST:
        raise InputError("bad-time", f"found {show(value)}, expected seconds from 0 on")
    return seconds


def parse_microseconds(value: Any) -> Fraction:
    """Return the seconds of a whole number of microseconds."""
    return Fraction(whole(value, "microseconds"), 10**6)


def parse_iso8601(text: Any) -> Fraction:
    """Return the seconds of a duration such as `PT00H00M17S`; years and months have no exact length and are refused."""
    found = ISO8601.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise InputError("bad-time", f"found {show(text)}, expected a duration such as PT0H1M17.5S")
    days, hours, minutes, seconds = (Fraction((part or "0").replace(",", ".")) for part in found.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def parse_time(value: Any) -> Fraction:
    """Return the seconds of a clock string, an ISO-8601 duration or a number of seconds, told apart by their form.

    The types of Parquet are accepted too: a duration, a time of day, or a timestamp on the first day of 1970.
    """
    if isinstance(value, str) and ":" in value:
        return parse_clock(value)
    if isinstance(value, str) and value.lstrip().startswith("P"):
        return parse_iso8601(value)
    if isinstance(value, datetime.timedelta | datetime.time | datetime.datetime):
        return parse_stamp(value)
    return parse_seconds(value)


def parse_stamp(value: datetime.timedelta | datetime.time | datetime.datetime) -> Fraction:
    """Return the seconds of a value that is a time already; a calendar date is refused."""
    if isinstance(value, datetime.datetime):
        if value.date() != EPOCH:
            raise InputError("bad-time", f"found the date {value}, expected a time in the video")
        value = value.time()
    if isinstance(value, datetime.time):
        value = datetime.datetime.combine(EPOCH, value.replace(tzinfo=None)) - datetime.datetime.combine(
            EPOCH, datetime.time()
        )
    return parse_seconds(Fraction(value // datetime.timedelta(microseconds=1), 10**6))


def parse_fps(value: Any) -> Fraction:
    """Return frames per second, of `30000/1001` or of a number; 23.976, 29.97 and 59.94 mean n * 1000 / 1001."""
    pair = re.fullmatch(r"\s*([0-9]{1,9})/([0-9]{1,9})\s*", value) if isinstance(value, str) else None
    if pair and int(pair[2]):
        fps = Fraction(int(pair[1]), int(pair[2]))
    else:
        fps = parse_seconds(value)
        ntsc = Fraction(math.ceil(fps) * 1000, 1001)
        fps = ntsc if abs(fps - ntsc) < Fraction(1, 1000) else fps
    if not 0 < fps <= 1000:
        raise InputError("bad-time", f"found {show(value)} fps, expected above 0, up to 1000")
    return fps


def parse_span(start: Any, end: Any, unit: str = "", fps: Any = None) -> tuple[Fraction, Fraction]:
    """Return start and end in seconds; an InputError unless 0 <= start < end.

    `unit` is empty for clock strings, ISO-8601 durations and seconds, else `microseconds` or `frames`. Frames
    need `fps`; `end` is exclusive; times are rounded to the millisecond, because files may not store them more exactly.
    """
    if unit == "frames":
        rate = parse_fps(fps)
        span = tuple(Fraction(math.floor(whole(frame, "frames") / rate * 1000), 1000) for frame in (start, end))
    elif unit in ("", "microseconds"):
        parse = parse_microseconds if unit else parse_time
        span = parse(start), parse(end)
    else:
        raise ValueError(f"unit: found {unit!r}, expected microseconds, frames or nothing")
    if span[0] >= span[1]:
        raise InputError("bad-span", f"found {show(start)} to {show(end)}, expected the start before the end")
    return span


def parse_pair(pair: Any) -> tuple[Fraction, Fraction]:
    """Return the span of a list of start and end, each as `parse_time` takes it."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InputError("bad-span", f"found {show(pair)}, expected a list of start and end")
    return parse_span(*pair)


def whole(value: Any, unit: str) -> int:
    """Return a whole number from 0 on, however it is written: 24, 24.0 or 2.4e1."""
    number = parse_number(value, "bad-time", f"whole {unit} from 0 on")
    if number.denominator != 1 or not 0 <= number < 10**18:
        raise InputError("bad-time", f"found {show(value)}, expected whole {unit} from 0 on")
    return int(number)
