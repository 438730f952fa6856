"""The plan: requests stay in the order of the inputs, whatever the batches, and what is said of them may change."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.books.ledger import Ledger, Outcome
from data_prep.books.plan import Plan
from data_prep.books.request import Caption, ClipRequest, Place


def request(number: int) -> ClipRequest:
    return ClipRequest(Place("list.jsonl", number + 1), f"{number // 3}.mp4", (Fraction(number), Fraction(number + 1)))


def enter(folder: Path, requests: list[ClipRequest], batch: int = 50) -> Plan:
    ledger = Ledger(folder / "ledger.sqlite")
    plan = Plan(folder / "plan.sqlite", folder / "ledger.sqlite")
    plan.add(ledger.admit(requests, batch=batch), batch=batch)
    ledger.record([Outcome(request.id, "ok") for request in requests])
    return plan


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=4), batch=st.integers(1, 40))
def test_requests_keep_the_order_of_the_inputs_over_batches_and_calls(tmp_path_factory, counts, batch):
    folder = tmp_path_factory.mktemp("plan")
    for count in counts:
        plan = enter(folder, [request(number) for number in range(count)], batch)
    wanted = [request(number) for number in range(max(counts))]
    assert [one for _, one in plan.made()] == wanted
    assert len(plan) == max(counts)
    assert [plan.find(one.id) for one in wanted] == wanted


def test_what_is_said_anew_of_a_request_is_taken_over(tmp_path):
    requests = [request(number) for number in range(100)]
    enter(tmp_path, requests)
    requests[70] = replace(requests[70], captions=(Caption("a cat", "hand"),), licence="CC0")
    assert [one for _, one in enter(tmp_path, requests).made()] == requests


def test_of_what_one_line_says_twice_the_last_counts(tmp_path):
    first = request(0)
    last = replace(first, licence="CC0")
    assert [one for _, one in enter(tmp_path, [first, last]).made()] == [last]


def test_each_source_has_its_requests_in_order(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    plan = Plan(tmp_path / "plan.sqlite", tmp_path / "ledger.sqlite")
    # In the order in which the sources are first named, not of their names.
    requests = [request(number) for number in (6, 7, 8, 0, 1, 2, 3, 4, 5)]
    plan.add(ledger.admit(requests, batch=4), batch=4)
    ledger.record([Outcome(requests[4].id, "ok")])
    assert list(plan.sources()) == [requests[:3], [requests[3], requests[5]], requests[6:]]
    with pytest.raises(IndexError):
        plan.sources()[3]


def test_only_what_may_pass_is_tried_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    plan = Plan(tmp_path / "plan.sqlite", tmp_path / "ledger.sqlite")
    requests = [request(number) for number in range(5)]
    plan.add(ledger.admit(requests))
    kinds = [("failed", "missing"), ("failed", "timeout", True), ("filtered", "static"), ("ok",)]
    ledger.record(Outcome(each.id, *kind) for each, kind in zip(requests, kinds, strict=False))
    assert (list(plan.sources(retry=True)), plan.sources(retry=True).requests) == ([[requests[1]]], 1)
    assert list(plan.sources()) == [[requests[4]]]
