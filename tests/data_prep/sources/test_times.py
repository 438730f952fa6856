"""Times as metadata writes them, exactly, and nothing that only looks like one."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.books.request import InputError
from data_prep.sources.metadata.times import (
    parse_clock,
    parse_fps,
    parse_iso8601,
    parse_microseconds,
    parse_pair,
    parse_seconds,
    parse_span,
    parse_time,
)

MILLISECONDS = st.integers(0, 359_999_999)
ANYTHING = (
    st.none()
    | st.booleans()
    | st.text("0123456789:./PTDHMS-", max_size=12)
    | st.integers()
    | st.floats()
    | st.lists(st.integers())
)


@given(MILLISECONDS, st.booleans())
def test_a_clock_string_is_read_to_the_millisecond(ms: int, padded: bool) -> None:
    hours, rest = divmod(ms, 3_600_000)
    text = f"{hours:0{1 + padded}}:{rest // 60_000:02}:{rest // 1000 % 60:02}.{rest % 1000:03}"
    assert parse_clock(text) == parse_time(text) == Fraction(ms, 1000)


@pytest.mark.parametrize("text", ["1 day 2:00:00.5", "1 days 02:00:00,5"])
def test_days_as_pandas_writes_them_count(text: str) -> None:
    assert parse_clock(text) == Fraction(26 * 3600) + Fraction(1, 2)


def test_a_time_or_a_number_of_frames_beyond_all_videos_is_none() -> None:
    assert parse_seconds(10**12 - 1) == 10**12 - 1
    with pytest.raises(InputError, match="expected seconds from 0 on"):
        parse_seconds(10**12)
    assert parse_microseconds(10**18 - 1) == Fraction(10**18 - 1, 10**6)
    with pytest.raises(InputError, match="expected whole microseconds from 0 on"):
        parse_microseconds(10**18)


@pytest.mark.parametrize(("written", "fps"), [("29.97", Fraction(30000, 1001)), ("23.98", Fraction(2398, 100))])
def test_only_a_rate_of_ntsc_within_a_thousandth_is_one(written: str, fps: Fraction) -> None:
    assert parse_fps(written) == fps


@given(MILLISECONDS)
def test_a_duration_is_the_sum_of_its_parts(ms: int) -> None:
    hours, rest = divmod(ms, 3_600_000)
    text = f"PT{hours:02}H{rest // 60_000:02}M{rest // 1000 % 60:02}.{rest % 1000:03}S"
    assert parse_iso8601(text) == parse_time(text) == Fraction(ms, 1000)


@given(MILLISECONDS)
def test_seconds_are_the_decimals_that_are_written(ms: int) -> None:
    written = f"{ms // 1000}.{ms % 1000:03}"
    assert parse_seconds(written) == parse_seconds(float(written)) == Fraction(ms, 1000)
    assert parse_seconds(ms) == ms


@given(st.integers(0, 10**15))
def test_microseconds_are_whole(count: int) -> None:
    assert parse_microseconds(count) == parse_microseconds(str(count)) == Fraction(count, 10**6)


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.sampled_from(["24", "30000/1001", 29.97, 12.5]))
def test_frames_become_seconds_and_back(start: int, count: int, fps: object) -> None:
    span = parse_span(start, start + count, "frames", fps)
    # The millisecond in which a frame is shown: the next one begins later.
    assert [math.ceil(second * parse_fps(fps)) for second in span] == [start, start + count]
    assert all(second * 1000 == int(second * 1000) for second in span)


@given(ANYTHING, ANYTHING, st.sampled_from(["", "microseconds", "frames"]), ANYTHING)
def test_whatever_comes_is_a_span_from_zero_on_or_an_input_error(start, end, unit, fps) -> None:
    with contextlib.suppress(InputError):
        first, last = parse_span(start, end, unit, fps)
        assert 0 <= first < last


def test_half_a_second_is_not_five_milliseconds() -> None:
    assert parse_clock("0:00:16.5") == Fraction(33, 2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("PT00H00M17S", 17), ("PT1M", 60), ("P1DT1S", 86401), ("PT0,5S", Fraction(1, 2)), ("P2D", 172800)],
)
def test_durations(text: str, seconds: Fraction) -> None:
    assert parse_iso8601(text) == seconds


@pytest.mark.parametrize(
    ("written", "fps"),
    [
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        (29.97002997, Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (25, 25),
        ("29.9", Fraction(299, 10)),
    ],
)
def test_broadcast_rates_are_meant_exactly(written: object, fps: Fraction) -> None:
    assert parse_fps(written) == fps


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:2:3",
        "0:60:00",
        "0:00:60",
        "100:00:00",
        "-0:00:01",
        "0:00:01.",
        "00:01",
        "0:00:01,",
        "1 week 0:00:01",
        "０:00:01",
    ],
)
def test_what_is_no_clock_string_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="bad-time"):
        parse_clock(text)


@pytest.mark.parametrize("text", ["P", "PT", "P1DT", "P1Y", "P1M", "1S", "PT-1S", "PT1S1M", "PT1.5H"])
def test_what_is_no_exact_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="bad-time"):
        parse_iso8601(text)


@pytest.mark.parametrize(
    "value",
    [
        *("1e100", "1,5", "1,000", "1 000", "1.5s", "0x10", "1/2", "nan", "inf", "-1", "1_0", "9" * 5000, "٣"),
        *(-1, -0.5, float("nan"), float("inf"), True, None),
    ],
)
def test_what_is_no_number_of_seconds_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="bad-time"):
        parse_seconds(value)


@pytest.mark.parametrize("pair", [["0:00:02.000", "0:00:01.000"], [1, 1], [1], [1, 2, 3], "12", None, {"a": 1}])
def test_a_pair_that_is_reversed_empty_or_none_is_refused(pair: object) -> None:
    with pytest.raises(InputError, match="bad-span"):
        parse_pair(pair)


@pytest.mark.parametrize("fps", [0, "0/1", "1/0", "1001", None, "fast"])
def test_frames_need_a_frame_rate(fps: object) -> None:
    with pytest.raises(InputError, match="bad-time"):
        parse_span(0, 1, "frames", fps)


def test_an_unknown_unit_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match="unit: found 'minutes'"):
        parse_span(0, 1, "minutes")
