import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.choose.filter import check_thresholds, filtered

THRESHOLDS = {"motion": {"min": 0.02, "max": 2}, "text": {"max": 0.05}}


def test_the_first_threshold_that_is_not_met_is_the_reason_and_the_detail_has_the_number():
    assert filtered({"motion": 0.01, "text": 0.9}, THRESHOLDS) == ("motion below 0.02", "found motion 0.01, min 0.02")
    assert filtered({"motion": 3, "text": 0.9}, THRESHOLDS).reason == "motion above 2"
    assert filtered({"motion": 1, "text": 0.9}, THRESHOLDS) == ("text above 0.05", "found text 0.9, max 0.05")


def test_limits_are_included():
    assert filtered({"motion": 0.02, "text": 0.05}, THRESHOLDS) is None
    assert filtered({"motion": 2.0, "text": 0.0}, THRESHOLDS) is None


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_score_that_is_no_number_does_not_pass(value):
    assert filtered({"motion": value, "text": 0}, THRESHOLDS).reason == "motion missing"


def test_a_score_that_was_never_computed_is_an_error_that_lists_those_that_were():
    with pytest.raises(KeyError, match=r"filter\.text: found no such score, expected one of motion, sharpness"):
        filtered({"sharpness": 3, "motion": 1}, THRESHOLDS)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"text": {"maximum": 0.1}}, r"filter\.text: found 'maximum', expected min or max"),
        ({"text": {"max": "0.1"}}, r"filter\.text\.max: found '0\.1', expected a number"),
        ({"text": {"max": float("nan")}}, r"filter\.text\.max: found nan"),
        ({"text": {"max": True}}, r"filter\.text\.max: found True"),
    ],
)
def test_a_threshold_with_a_typing_error_is_an_error(thresholds, message):
    with pytest.raises(ValueError, match=message):
        check_thresholds(thresholds)


def test_other_thresholds_run_on_the_stored_scores_alone():
    stored = json.dumps({"a": {"motion": 0.5, "text": 0.0}, "b": {"motion": 0.5, "text": 0.2}})
    for limit, kept in ((0.05, ["a"]), (0.3, ["a", "b"])):
        limits = {"text": {"max": limit}}
        assert [key for key, scores in json.loads(stored).items() if filtered(scores, limits) is None] == kept


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(-1e6, 1e6))
def test_only_what_is_within_passes(value, limit):
    assert (filtered({"score": value}, {"score": {"min": limit}}) is None) == (value >= limit)
