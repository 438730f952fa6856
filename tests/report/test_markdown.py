from __future__ import annotations

from pathlib import Path

from tests.material.report_run import evaluation
from videodiff.report.markdown import lines, write_markdown


def test_the_table_names_units_and_directions_and_marks_the_best(tmp_path: Path) -> None:
    text = write_markdown(tmp_path / "evaluation.md", evaluation()).read_text().splitlines()
    assert text[0] == "| predictor | clips | velocity error (units/s) ↓ | shape error ↓ | caption accuracy ↑ |"
    assert text[1] == "| --- | --- | --- | --- | --- |"
    assert text[2] == "| model | 256 | **0.0412 ± 0.0025** | 0.0310 ± 0.0019 | **0.940 ± 0.056** |"
    # A floor is below all and competes with none.
    assert "| true video, parsed (floor) | 256 | 0.001300 ± 0.000078 | 0.00400 ± 0.00024 | – |" in text
    assert "| velocity error (units/s) ↓ | 0.0412 ± 0.0025 | ≤ 0.05, met |" in text
    assert "| caption accuracy ↑ | 0.940 ± 0.015 | ≥ 0.95, missed |" in text


def test_a_figure_of_some_clips_only_says_of_how_many(tmp_path: Path) -> None:
    made = {"clips": 8, "e": 0.5, "e_clips": 7, "metrics": {"e": {"better": "lower"}}}
    assert list(lines(made, tmp_path))[-1] == "| e ↓ | 0.5 on 7 |  |"


def test_a_bar_in_a_name_ends_no_cell(tmp_path: Path) -> None:
    made = {"table": [{"name": "a|b", "e": 1.0}], "metrics": {"e": {"better": "lower"}}}
    assert any("| a\\|b |" in line for line in lines(made, tmp_path))


def test_figures_by_the_number_of_balls_are_a_table_of_their_own(tmp_path: Path) -> None:
    rows = [{"name": "1 ball", "kind": "model", "clips": 6, "e": 0.25}, {"name": "2 balls", "clips": 2, "e": 0.5}]
    made = {"e": 0.3125, "by_balls": rows, "metrics": {"e": {"better": "lower"}}}
    found = [line for line in lines(made, tmp_path) if line]
    assert found[-4:] == [
        "| truth | clips | e ↓ |",
        "| --- | --- | --- |",
        "| 1 ball | 6 | 0.25 |",
        "| 2 balls | 2 | 0.5 |",
    ]
