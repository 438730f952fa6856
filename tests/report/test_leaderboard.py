"""The file that many evaluations share, and the table that is made of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from videodiff.report import leaderboard
from videodiff.report.leaderboard import add_row, read_rows

METRICS = {
    "velocity_error": {"better": "lower", "unit": "units/s", "range": [0, None]},
    "colour_accuracy": {"better": "higher", "unit": "", "range": [0, 1]},
}


def evaluation(**figures: float) -> dict[str, Any]:
    stderr = {f"{name}_stderr": 0.01 for name in figures}
    facts = {"checkpoint": "checkpoints/000100", "dataset": "d", "clips": 8, "given_frames": 3, "seed": 0}
    return facts | figures | stderr | {"metrics": {name: METRICS[name] for name in figures}}


def add(board: Path, run: str, dataset: str = "datasets/held_out", steps: int = 4, **figures: float) -> None:
    add_row(board, Path("runs") / run, evaluation(**figures) | {"dataset": dataset}, {"sampler": {"steps": steps}})


def test_figures_that_are_shown_as_the_same_have_the_same_mark(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    for run, value in {"a": 0.25001, "b": 0.25, "c": 0.251}.items():
        add(board, run, velocity_error=value)
    *_, last = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert last == "| velocity error (units/s) ↓ | **0.250 ± 0.010** | **0.250 ± 0.010** | 0.251 ± 0.010 |"


def test_runs_stand_side_by_side_and_the_best_is_bold(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "a", velocity_error=0.5, colour_accuracy=0.75)
    add(board, "b", velocity_error=0.25, colour_accuracy=0.5)
    add(board, "c", velocity_error=0.75)
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert lines == [
        "## datasets/held_out, 8 clips, 3 given frames",
        "",
        "| figure | a 000100 | b 000100 | c 000100 |",
        "| --- | --- | --- | --- |",
        "| velocity error (units/s) ↓ | 0.500 ± 0.010 | **0.250 ± 0.010** | 0.750 ± 0.010 |",
        "| colour accuracy ↑ | **0.750 ± 0.010** | 0.500 ± 0.010 | – |",
    ]


def test_the_last_evaluation_of_the_same_thing_counts_and_every_one_is_kept(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "a", velocity_error=0.5)
    add(board, "a", steps=8, velocity_error=0.25)
    add(board, "a", velocity_error=0.75)
    rows, damaged = read_rows(board)
    assert [(row["sampler"]["steps"], row["figures"]["velocity_error"]) for row in rows] == [(8, 0.25), (4, 0.75)]
    assert damaged == 0
    assert len(board.read_text().splitlines()) == 3


def test_evaluations_of_one_run_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "a", velocity_error=0.5)
    add(board, "a", steps=8, velocity_error=0.25)
    add(board, "b", steps=8, velocity_error=0.75)
    head = (tmp_path / "leaderboard.md").read_text().splitlines()[2]
    assert head == "| figure | a 000100, steps 4 | a 000100, steps 8 | b 000100 |"


def test_each_dataset_has_its_own_table(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "a", velocity_error=0.5)
    add(board, "b", dataset="datasets/other", velocity_error=0.25)
    text = (tmp_path / "leaderboard.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## datasets/held_out, 8 clips, 3 given frames",
        "## datasets/other, 8 clips, 3 given frames",
    ]
    assert "**" not in text


@pytest.mark.parametrize("change", [{"clips": 16}, {"given_frames": 1}, {"shape": "16 x 36 x 36"}])
def test_figures_of_other_clips_or_of_another_task_do_not_compete(tmp_path: Path, change: dict[str, Any]) -> None:
    board, facts = tmp_path / "leaderboard.jsonl", {"sampler": {}}
    for run, more in (("a", {}), ("b", change)):
        add_row(board, Path(run), {**evaluation(velocity_error=0.5), "shape": "8 x 20 x 20", **more}, facts)
    text = (tmp_path / "leaderboard.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## d, 8 clips of 8 x 20 x 20, 3 given frames",
        f"## d, {change.get('clips', 8)} clips of {change.get('shape', '8 x 20 x 20')}, "
        f"{change.get('given_frames', 3)} given frame{'s' * (change.get('given_frames') != 1)}",
    ]
    assert "**" not in text


def headings(board: Path) -> list[str]:
    return [line for line in board.with_suffix(".md").read_text().splitlines() if line.startswith("##")]


def test_runs_of_one_name_in_two_folders_stand_side_by_side(tmp_path: Path) -> None:
    board, facts = tmp_path / "leaderboard.jsonl", {"sampler": {}}
    # As an older version wrote it: the run lies beside its board.
    board.write_text(json.dumps(ROW | {"run": "demo"}) + "\n")
    for run, error in (("demo", 0.75), ("other/demo", 0.25), ("other/../demo", 0.5)):
        add_row(board, tmp_path / run, evaluation(velocity_error=error), facts)
    rows, _ = read_rows(board)
    assert [(row["folder"], row["figures"]["velocity_error"]) for row in rows] == [("other/demo", 0.25), ("demo", 0.5)]
    head = board.with_suffix(".md").read_text().splitlines()[2]
    assert head == "| figure | demo 000100, folder other/demo | demo 000100, folder demo |"


def test_a_run_has_its_name_also_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = tmp_path / "leaderboard.jsonl"
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    add_row(board, Path(), evaluation(velocity_error=0.5), {"sampler": {}})
    (row,) = read_rows(board)[0]
    assert (row["run"], row["folder"]) == ("mine", "mine")


def test_clips_of_a_dataset_that_was_made_anew_do_not_compete_with_the_former_ones(tmp_path: Path) -> None:
    board, facts = tmp_path / "leaderboard.jsonl", {"sampler": {}}
    board.write_text(json.dumps(ROW) + "\n")
    for run, checksum in (("a", "0123456789abcdef"), ("b", "fedcba9876543210")):
        add_row(board, tmp_path / run, evaluation(velocity_error=0.25) | {"clips_sha256": checksum}, facts)
    place = "## d, 8 clips, 3 given frames, checksum"
    assert headings(board) == [f"{place} not recorded", f"{place} 01234567", f"{place} fedcba98"]
    assert "**" not in board.with_suffix(".md").read_text()


def measured_by(name: str, sha256: str, **more: Any) -> dict[str, Any]:
    return {"settings": {"path": {"name": name, "sha256": sha256}, "crop": False, **more}}


def test_figures_of_other_weights_or_settings_do_not_compete(tmp_path: Path) -> None:
    board, facts = tmp_path / "leaderboard.jsonl", {"sampler": {}}
    ways = [
        ("a", 0.5, measured_by("clip-b", "0" * 16)),
        ("b", 0.25, measured_by("clip-l", "1" * 16)),
        # The weights of the first one in a folder of another name.
        ("c", 0.75, measured_by("copy", "0" * 16)),
        ("d", 0.125, measured_by("clip-b", "0" * 16, crop=True)),
        ("e", 0.0, {}),
        ("f", 0.0, {"unit": "pixels/s"}),
    ]
    for run, value, more in ways:
        found = evaluation(velocity_error=value, colour_accuracy=value)
        found["metrics"] = found["metrics"] | {"velocity_error": METRICS["velocity_error"] | more}
        add_row(board, tmp_path / run, found, facts)
    lines = [line for line in board.with_suffix(".md").read_text().splitlines() if "velocity" in line]
    heads = [line.split(" | ")[0].removeprefix("| velocity error ") for line in lines]
    assert heads == [
        "(units/s) ↓, path clip-b 00000000, crop False",
        "(units/s) ↓, path clip-l 11111111, crop False",
        "(units/s) ↓, path clip-b 00000000, crop True",
        "(units/s) ↓, path not recorded, crop not recorded",
        "(pixels/s) ↓, path not recorded, crop not recorded",
    ]
    assert lines[0].endswith("| **0.500 ± 0.010** | – | 0.750 ± 0.010 | – | – | – |")
    assert not any("**" in line for line in lines[1:])
    # What is measured in one way stands in one line.
    assert board.with_suffix(".md").read_text().count("colour accuracy") == 1


def test_a_figure_that_could_not_be_measured_on_all_clips_says_on_how_many(tmp_path: Path) -> None:
    board, facts = tmp_path / "leaderboard.jsonl", {"sampler": {}}
    add(board, "a", dataset="d", velocity_error=0.5)
    add_row(board, Path("b"), {**evaluation(velocity_error=0.25), "velocity_error_clips": 5}, facts)
    # As an older version wrote it.
    with board.open("a") as file:
        file.write(json.dumps(ROW | {"run": "c"}) + "\n")
    add(board, "e", dataset="d", velocity_error=0.75)
    line = (tmp_path / "leaderboard.md").read_text().splitlines()[-1]
    cells = "0.500 ± 0.010 | **0.250 ± 0.010** on 5 | 0.50 ± 0.10 | 0.750 ± 0.010"
    assert line == f"| velocity error (units/s) ↓ | {cells} |"


ROW = {"run": "other", "checkpoint": "000100", "dataset": "d", "clips": 8, "given_frames": 3, "seed": 0, "sampler": {}}
ROW |= {"metrics": METRICS, "figures": {"velocity_error": 0.5}, "errors": {"velocity_error": 0.1}}


def row_without(name: str) -> str:
    return json.dumps({key: value for key, value in ROW.items() if key != name})


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("[" * 100_000, id="deep"),
        *('{"run": "half', "[]", "\x00", json.dumps({"metrics": {}, "figures": {}}), row_without("errors")),
        *(json.dumps({**ROW, "errors": each}) for each in (None, [0.1], {"velocity_error": "0.1"})),
        *(json.dumps({**ROW, "counts": each}) for each in (None, 3, {"velocity_error": "3"})),
        json.dumps({**ROW, "metrics": {"velocity_error": METRICS["velocity_error"] | {"settings": "b"}}}),
        *(json.dumps({**ROW, "figures": {"velocity_error": each}}) for each in ("0.5", None, float("nan"))),
    ],
)
def test_a_damaged_line_costs_itself_and_is_counted(tmp_path: Path, broken: str) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "a", velocity_error=0.5)
    with board.open("a") as file:
        file.write(broken)
    add(board, "b", velocity_error=0.25)
    rows, damaged = read_rows(board)
    assert [row["run"] for row in rows] == ["a", "b"]
    assert damaged == 1
    assert (tmp_path / "leaderboard.md").read_text().startswith("1 line of the file left out: no row.")


def test_rows_that_are_written_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    board = tmp_path / "deep" / "leaderboard.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add(board, f"run{i}", velocity_error=i / 8), range(24)))
    rows, damaged = read_rows(board)
    assert {row["run"] for row in rows} == {f"run{i}" for i in range(24)}
    assert damaged == 0
    assert "The last 12 of 24 evaluations." in board.with_suffix(".md").read_text()


def test_a_row_that_was_seen_half_written_leaves_an_empty_line_and_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "first", velocity_error=0.5)
    monkeypatch.setattr(leaderboard, "ends_a_line", lambda path: False)
    add(board, "second", velocity_error=0.25)
    assert "\n\n" in board.read_text()
    rows, damaged = read_rows(board)
    assert [row["run"] for row in rows] == ["first", "second"]
    assert damaged == 0


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x1c", "\r", "\udcff"], ids=ascii)
def test_a_name_may_hold_what_elsewhere_ends_a_line_or_is_no_text(tmp_path: Path, end: str) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, f"one{end}two", velocity_error=0.5)
    rows, damaged = read_rows(board)
    assert [row["run"] for row in rows] == [f"one{end}two"]
    assert damaged == 0


def test_a_table_that_was_written_by_another_before_ours_gets_its_row_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "leaderboard.jsonl"
    whole = leaderboard.write_alone

    def late(path: Path, data: bytes) -> Path:
        monkeypatch.setattr(leaderboard, "write_alone", whole)
        add(board, "other", velocity_error=0.25)
        return whole(path, data)

    monkeypatch.setattr(leaderboard, "write_alone", late)
    add(board, "ours", velocity_error=0.5)
    text = board.with_suffix(".md").read_text()
    assert "ours" in text
    assert "other" in text


def test_the_commit_is_that_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text(json.dumps({"git": {"commit": "0123456789abcdef"}}))
    add_row(tmp_path / "b.jsonl", run, evaluation(velocity_error=0.5), {"sampler": {}})
    assert json.loads((tmp_path / "b.jsonl").read_text())["commit"] == "0123456789ab"


def test_a_name_is_no_link_and_no_picture_that_would_be_fetched(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "![a](run)", dataset="[set](https://example.com/set)", velocity_error=0.5)
    table = board.with_suffix(".md").read_text()
    assert "![a]\\(run)" in table
    assert "[set]\\(https://example.com/set)" in table
    assert "](" not in table


def test_names_stay_in_their_cells_and_are_no_html(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.jsonl"
    add(board, "a\n| b | <i>x<i>", dataset="set\n# <b>", velocity_error=0.5)
    table = board.with_suffix(".md").read_text().splitlines()
    assert table[:3] == [
        "## set # &lt;b>, 8 clips, 3 given frames",
        "",
        "| figure | a \\| b \\| &lt;i>x&lt;i> 000100 |",
    ]
    assert [line.count(" | ") for line in table[2:]] == [1, 1, 1]
