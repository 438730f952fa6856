import json

import pytest

from videodiff.data.loader.quarantine import Quarantine, QuarantineError, SampleId

A, B = SampleId("a.tar", "one", 0), SampleId("b.tar", "two", 512)


def test_each_sample_gets_one_line(tmp_path):
    quarantine = Quarantine(tmp_path / "run" / "quarantine.jsonl")
    quarantine.add(A, (3, 1), "timeout: took longer than 9 s")
    quarantine.add(A, (2, 0), "timeout: took longer than 9 s")
    quarantine.add(B, (4, 0), "crashed")
    assert [json.loads(line) for line in quarantine.path.read_text().splitlines()] == [
        {
            "shard": "a.tar",
            "key": "one",
            "offset": 0,
            "dataset": 0,
            "order": [3, 1],
            "reason": "timeout: took longer than 9 s",
        },
        {"shard": "b.tar", "key": "two", "offset": 512, "dataset": 0, "order": [4, 0], "reason": "crashed"},
    ]


def test_a_sample_is_held_from_its_first_failure_on():
    quarantine = Quarantine()
    quarantine.add(A, (3, 1), "late")
    quarantine.add(A, (2, 5), "early")
    quarantine.add(A, (9, 9), "later")
    assert [quarantine.holds(A, order) for order in [(2, 4), (2, 5), (3, 0), (9, 9)]] == [False, True, True, True]
    assert not quarantine.holds(B, (9, 9))


def test_the_states_of_several_ranks_join():
    ranks = [Quarantine(), Quarantine()]
    ranks[0].add(A, (3, 1), "x")
    ranks[1].add(A, (2, 1), "x")
    ranks[1].add(B, (1, 1), "y")
    joined = Quarantine()
    for rank in ranks:
        joined.load_state_dict(json.loads(json.dumps(rank.state_dict())))
    assert joined.losses == ranks[1].losses


def test_the_budget_counts_samples_not_failures():
    quarantine = Quarantine(budget=1)
    quarantine.add(A, (3, 1), "x")
    quarantine.add(A, (2, 1), "x")
    with pytest.raises(QuarantineError, match=r"found 2 samples .* \(2 x; 1 a.tar, 1 b.tar\), expected at most 1; "):
        quarantine.add(B, (2, 2), "x: y")


def test_what_a_checkpoint_brings_is_no_fault_of_this_process():
    """A hundred ranks with one broken clip each are no worse after a resume than before."""
    resumed = Quarantine(budget=1)
    resumed.load_state_dict([["c.tar", str(number), 0, 0, [1, number], "z"] for number in range(100)])
    resumed.add(A, (3, 1), "x")
    with pytest.raises(QuarantineError, match=r"found 102 samples .*; 100 before this start\), expected at most 101; "):
        resumed.add(B, (3, 2), "y")
