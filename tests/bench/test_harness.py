"""Ratios and tables of `make bench`, and each subject once with its work shrunk."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(BENCH))
    for name in [name for name in sys.modules if name.partition(".")[0] == "subjects"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("subjects.harness")
    monkeypatch.setattr(module, "OUT", tmp_path / "out")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "RESULTS.md")
    return module


def test_a_ratio_is_the_median_of_the_ratios_of_rounds(harness) -> None:
    # A slow third round slows both alike, and changes nothing.
    found = harness.ratio("ours", [2.0, 3.0, 20.0], [1.0, 1.0, 10.0], "key")
    assert (found.value, found.low, found.high) == (2.0, 2.0, 3.0)


def test_all_take_turns_and_each_comes_first(harness) -> None:
    called: list[str] = []
    taken = harness.turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=2)
    assert called == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2}


def test_what_was_found_is_recorded_with_its_spread_and_its_command(harness, tmp_path: Path) -> None:
    found = [
        harness.Figure("as fast as the other", 1.5, 1.25, 2.0, "vs_other", "at least 1"),
        harness.figure("ms", [4]),
    ]
    harness.record("thing", "A thing", found, "python bench/run.py thing", tiny=True)
    assert not list(tmp_path.iterdir())
    harness.record("thing", "A thing", found, "python bench/run.py thing", tiny=False)
    made = json.loads((tmp_path / "out" / "thing.json").read_text())
    assert made["vs_other"] == 1.5
    assert made["spread"]["as fast as the other"] == [1.25, 1.5, 2.0]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## A thing: `python bench/run.py thing`" in text
    assert "| as fast as the other | 1.5   | 1.25 to 2 | at least 1 |" in text


def test_the_denoiser_is_measured_beside_latte(harness) -> None:
    subject = importlib.import_module("subjects.denoiser")
    found = {one.key: one.value for one in subject.measure(harness.Settings(1, tiny=True)) if one.key}
    sizes = ("wide", "wide_bf16", "small")
    assert set(found) == {
        name for s in sizes for name in (f"vs_latte_{s}", f"vs_latte_{s}_every_block", f"ceiling_fraction_{s}")
    }
    assert all(value > 0 for value in found.values())


def test_what_is_not_training_has_a_share_of_the_step(harness) -> None:
    subject = importlib.import_module("subjects.step")
    found = {one.what: one.value for one in subject.measure(harness.Settings(1, tiny=True))}
    parts = {what.partition(": ")[2]: value for what, value in found.items() if what.startswith("milliseconds")}
    beside = sum(parts[name] for name in ("average", "check", "log"))
    whole = sum(parts.values()) - parts["average"]
    assert found["share of average, checks and log in a step"] == pytest.approx(beside / whole)


def test_sampling_is_measured_beside_passes_of_latte(harness) -> None:
    subject = importlib.import_module("subjects.sampling")
    found = {one.key: one.value for one in subject.measure(harness.Settings(1, tiny=True)) if one.key}
    assert list(found) == ["vs_latte_flow_map_1"]
    assert found["vs_latte_flow_map_1"] > 0


def test_a_step_from_the_cache_is_measured_beside_one_that_encodes(harness) -> None:
    subject = importlib.import_module("subjects.encoding")
    found = {one.key: one.value for one in subject.measure(harness.Settings(1, tiny=True)) if one.key}
    assert found["cached_vs_online"] > 0


def test_a_save_by_a_thread_is_measured_beside_one_that_is_waited_for(harness) -> None:
    subject = importlib.import_module("subjects.checkpoint")
    share, *seconds = subject.measure(harness.Settings(1, tiny=True))
    assert share.key == "asynchronous_share"
    assert all(one.value > 0 for one in seconds)


def test_losses_with_products_in_fp8_stay_near_those_without(harness) -> None:
    subject = importlib.import_module("subjects.fp8")
    found = {one.key: one.value for one in subject.measure(harness.Settings(1, tiny=True))}
    assert list(found) == ["bfloat16", "rowwise", "tensorwise"]
    assert all(0 < abs(percent) < 2 for percent in found.values())


def test_every_subject_has_a_title_and_a_measure(harness) -> None:
    for name in importlib.import_module("run").SUBJECTS:
        subject = importlib.import_module(f"subjects.{name}")
        assert subject.TITLE
        assert callable(subject.measure)
