from __future__ import annotations

import json

import numpy as np
import pytest

from videodiff.metrics.summary import mean_and_error, mean_curves, predictor_table, ratio_and_error, summarise


def test_mean_and_standard_error_are_those_of_the_sample():
    mean, stderr = mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert stderr == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3) / 2)


@pytest.mark.parametrize("value", [54.151403521958734, 0.1, 1 / 3])
def test_equal_values_have_exactly_no_error(value):
    # The cap of PSNR, for one. Summed up and divided they are a rounding error off.
    assert all(mean_and_error([value] * number) == (value, 0.0) for number in range(2, 300))


def test_one_value_has_no_standard_error():
    assert mean_and_error([0.5]) == (0.5, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_an_error(bad):
    with pytest.raises(ValueError, match=r"at 1 \(1 in all\)"):
        mean_and_error([0.0, bad, 1.0])


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="found none"):
        mean_and_error([])


def test_the_error_of_a_quotient_is_the_spread_of_the_quotients_of_many_sets():
    # Independent sets from one world of paired clips: their quotients scatter by what each set says of itself.
    draw = np.random.default_rng(0)
    found = []
    for _ in range(400):
        hard = draw.gamma(4.0, size=256)
        found.append(ratio_and_error(hard * draw.uniform(0.1, 0.5, size=256), hard))
    ratios, errors = np.transpose(found)
    assert ratios.mean() == pytest.approx(0.3, abs=0.002)
    assert errors.mean() == pytest.approx(ratios.std(), rel=0.1)
    assert ratio_and_error([1.0], [4.0]) == (0.25, None)
    assert ratio_and_error([1.0, 3.0], [2.0, 6.0]) == (0.5, 0.0)


def test_a_number_that_only_some_clips_have_says_how_many():
    summary = summarise([{"a": 1.0, "b": 4.0}, {"a": 3.0}])
    assert summary == {"a": 2.0, "a_stderr": 1.0, "b": 4.0, "b_stderr": None, "b_clips": 1}


def test_a_curve_has_the_mean_and_the_error_of_each_frame():
    found = mean_curves([{"a": np.array([1.0, 5.0])}, {"a": np.array([3.0, 5.0])}, {}])
    assert found == {"a": {"mean": [2.0, 5.0], "stderr": [pytest.approx(1.0), 0.0]}}


def test_an_error_names_the_metric():
    with pytest.raises(ValueError, match="velocity_error: values: found nan"):
        summarise([{"velocity_error": float("nan")}])


def test_the_table_has_a_row_a_predictor_with_its_kind():
    table = predictor_table({"model": [{"e": 1.0}, {"e": 2.0}], "ground truth": [{"e": 0.0}], "law": [{"e": 0.1}]})
    assert [(row["name"], row["kind"], row["clips"], row["e"]) for row in table] == [
        ("model", "model", 2, 1.5),
        ("ground truth", "floor", 1, 0.0),
        ("law", "reference", 1, 0.1),
    ]
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_a_predictor_without_clips_is_refused():
    with pytest.raises(ValueError, match="clips: found none"):
        predictor_table({"model": []})
