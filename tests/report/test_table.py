import math
from pathlib import Path

import pytest

from videodiff.metrics.metric import Quantity
from videodiff.report.table import Measured, best, columns, figures, left_out, meanings, rounded, rows

WHERE = Path("evaluation.json")
LOWER = Quantity("lower")


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.041234, 0.0031, "0.0412"),
        (12.3456, 0.5, "12.35"),
        (1234.5, 210.0, "1,234"),
        (0.75, None, "0.75"),
        (256.0, None, "256"),
        (0.00612345, 0.0, "0.00612"),
        (math.nan, 0.1, "not finite"),
    ],
)
def test_a_value_is_rounded_to_two_digits_of_its_standard_error(value, stderr, text):
    assert rounded(value, stderr) == text


@pytest.mark.parametrize(
    ("better", "value", "target", "met"),
    [
        ("lower", 0.04, 0.05, True),
        ("lower", 0.06, 0.05, False),
        ("higher", 0.96, 0.95, True),
        ("higher", 0.9, 0.95, False),
        ("lower", math.nan, 0.05, False),
        ("lower", 0.04, None, None),
    ],
)
def test_a_target_is_reached_from_the_side_that_is_declared_better(better, value, target, met):
    # The name says the contrary of what is declared half of the time: it does not count.
    assert Measured("an_accuracy_error", value, target=target, quantity=Quantity(better)).met is met


def test_a_figure_carries_its_error_its_clips_and_its_target():
    flat = {
        "a_error": 1,
        "a_error_stderr": 0.1,
        "a_error_clips": 7,
        "b": None,
        "dataset": "d",
        "targets": {"a_error": 2},
    }
    numbers, texts = figures(flat, WHERE, {"a_error": LOWER})
    assert numbers == [Measured("a_error", 1.0, 0.1, 7.0, 2.0, LOWER)]
    assert texts == {"dataset": "d"}


def test_rows_come_model_first_and_bounds_last():
    table = [{"name": "ground truth", "kind": "floor"}, {"name": "held"}, {"name": "model", "clips": 3, "e": 1.0}]
    assert [(row.name, row.kind, row.clips) for row in rows({"table": table}, WHERE)] == [
        ("model", "model", 3.0),
        ("held", "reference", None),
        ("ground truth", "floor", None),
    ]


def test_the_best_is_the_smallest_error_and_the_largest_share_without_bounds():
    entries = [
        {"name": "model", "e_error": 0.3, "right_share": 0.8},
        {"name": "held", "e_error": 0.2, "right_share": 0.7, "c": math.nan},
        {"name": "truth", "kind": "ceiling", "e_error": 0.0, "right_share": 1.0},
    ]
    table = rows({"table": entries}, WHERE, {"e_error": LOWER, "right_share": Quantity("higher")})
    assert best(table) == {"e_error": 0.2, "right_share": 0.8}
    assert [column.name for column in columns(table)] == ["e_error", "right_share", "c"]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"a": [1]}, r"evaluation\.json: a: found '\[1\]', expected a number"),
        ({"targets": [1]}, "targets: found a list, expected an object"),
        ({"targets": {"a": 1}}, r"targets\.a: found no figure of this name"),
        ({"a": 1, "targets": {"a": "low"}}, r"targets\.a: found 'low', expected a number"),
        ({"a": 1, "targets": {"a": 2}}, r"targets\.a: found no metrics\.a that says which direction is better"),
    ],
)
def test_malformed_figures_name_their_key(evaluation, message):
    with pytest.raises(ValueError, match=message):
        figures(evaluation, WHERE)


def test_metrics_that_are_left_out_have_reasons_of_any_kind():
    assert left_out({"left_out": {"fvd": "no file", "jedi": None}}, WHERE) == ["no file", "None"]
    with pytest.raises(ValueError, match="left_out: found a list, expected an object"):
        left_out({"left_out": ["fvd"]}, WHERE)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": 1}, "table: found a dict, expected a list of rows"),
        ([{"name": "a"}, 3], r"table\[1\]: found '3', expected an object with a name"),
        ([{"name": "a", "kind": "best"}], r"table\[0\]\.kind: found 'best', expected one of model"),
        ([{"name": "a", "e": True}], r"table\[0\]\.e: found 'True', expected a number"),
    ],
)
def test_malformed_rows_name_their_place(table, message):
    with pytest.raises(ValueError, match=message):
        rows({"table": table}, WHERE)


def test_an_evaluation_says_itself_what_its_figures_mean_and_only_an_old_one_is_helped():
    said = {"metrics": {"e": {"better": "higher", "unit": "dB", "range": [0, None]}}}
    assert meanings(said, WHERE, {"e": LOWER, "f": LOWER}) == {"e": Quantity("higher", "dB", 0.0)}
    assert meanings({}, WHERE, {"f": LOWER}) == {"f": LOWER}


def test_a_figure_of_which_nothing_is_declared_has_no_arrow_and_no_best():
    table = rows({"table": [{"name": "model", "right_share": 0.5}, {"name": "held", "right_share": 0.6}]}, WHERE)
    assert [column.arrow for column in columns(table)] == [""]
    assert best(table) == {}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "metrics: found a list, expected an object"),
        ({"e": "lower"}, r"metrics\.e: found 'lower', expected an object with better"),
        ({"e": {"better": "less"}}, r"metrics\.e\.better: found 'less', expected higher or lower"),
        ({"e": {"better": "lower", "unit": 3}}, r"metrics\.e\.unit: found '3', expected text"),
        ({"e": {"better": "lower", "range": [0]}}, r"metrics\.e\.range: found '\[0\]', expected \[least, most\]"),
        ({"e": {"better": "lower", "range": [2, 1]}}, r"metrics\.e\.range: found 2.0 to 1.0, expected a least below"),
        ({"e": {"better": "lower", "range": [0, True]}}, r"metrics\.e\.range: found"),
    ],
)
def test_a_meaning_of_another_form_names_its_place(records, message):
    with pytest.raises(ValueError, match=message):
        meanings({"metrics": records}, WHERE)
