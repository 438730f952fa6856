import math
from pathlib import Path

import pytest

from videodiff.report.table import Measured, best, columns, figures, rounded, rows

WHERE = Path("evaluation.json")


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
    ("name", "value", "target", "met"),
    [
        ("velocity_error", 0.04, 0.05, True),
        ("velocity_error", 0.06, 0.05, False),
        ("colour_accuracy", 0.96, 0.95, True),
        ("permanence_share", 0.9, 0.95, False),
        ("velocity_error", math.nan, 0.05, False),
        ("velocity_error", 0.04, None, None),
    ],
)
def test_a_target_is_below_for_errors_and_above_for_shares(name, value, target, met):
    assert Measured(name, value, target=target).met is met


def test_a_figure_carries_its_error_its_clips_and_its_target():
    flat = {"a_error": 1, "a_error_stderr": 0.1, "a_error_clips": 7, "b": None, "world": "w", "targets": {"a_error": 2}}
    numbers, texts = figures(flat, WHERE)
    assert numbers == [Measured("a_error", 1.0, 0.1, 7.0, 2.0)]
    assert texts == {"world": "w"}


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
    table = rows({"table": entries}, WHERE)
    assert best(table) == {"e_error": 0.2, "right_share": 0.8}
    assert [column.name for column in columns(table)] == ["e_error", "right_share", "c"]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"a": [1]}, r"evaluation\.json: a: found '\[1\]', expected a number"),
        ({"targets": [1]}, "targets: found a list, expected an object"),
        ({"targets": {"a": 1}}, r"targets\.a: found no figure of this name"),
        ({"a": 1, "targets": {"a": "low"}}, r"targets\.a: found 'low', expected a number"),
    ],
)
def test_malformed_figures_name_their_key(evaluation, message):
    with pytest.raises(ValueError, match=message):
        figures(evaluation, WHERE)


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
