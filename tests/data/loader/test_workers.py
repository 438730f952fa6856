import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.material.made_clips import write_dataset
from tests.material.stand_in_codec import Clip, act, read
from videodiff.data.loader.quarantine import Quarantine, QuarantineError, SampleId
from videodiff.data.loader.workers import Pace, Slots, Workers
from videodiff.data.samples.manifest import Manifest

SHAPE = (2, 4, 4, 3)
SIZE = 2 * 4 * 4 * 3
# `make soak` asks for 300.
RUNS = int(os.environ.get("FAULT_RUNS", "30"))


def clip(step, place, number, kind="slow", shape=SHAPE):
    return Clip((step, place), SampleId("a.tar", f"clip{number}", number), shape, (kind, number))


def stand_in(asked, attempt):
    return clip(*asked.order, 1000 + 100 * asked.order[0] + 10 * asked.order[1] + attempt)


def requests(kinds=None, steps=5, clips=4, numbers=None):
    """Yield batches of clips 0, 1, 2, ..., or of these numbers, which do what `kinds` says."""
    for step in range(steps):
        found = [(numbers or range(steps * clips))[step * clips + place] for place in range(clips)]
        yield [clip(step, p, n, (kinds or {}).get(n, "slow")) for p, n in enumerate(found)]


def contents(batches):
    """Return the number of each clip of each batch by its frames; what was returned beside them must be the same."""
    found = []
    for batch in batches:
        numbers = [rest["number"] for rest in batch.rest]
        assert (batch.frames == np.reshape(numbers, (-1, 1, 1, 1, 1)) % 251).all()
        assert numbers == [task.what[1] for task in batch.tasks]
        found.append(numbers)
    return found


@pytest.fixture(scope="module")
def pool():
    with Workers(act, 2, 8 * SIZE, stand_in, Quarantine(), timeout=2.0) as workers:
        yield workers


@pytest.fixture
def fresh(pool, tmp_path):
    """Return the pool with a quarantine of its own."""
    pool.quarantine = Quarantine(tmp_path / "quarantine.jsonl", budget=20)
    return pool


def test_batches_come_in_order_whatever_takes_how_long(fresh):
    assert contents(fresh.batches(requests(steps=20))) == np.arange(80).reshape(20, 4).tolist()


def test_clips_that_cannot_be_read_are_replaced_and_named(fresh):
    kinds = {2: "hang", 5: "abort", 6: "raise", 9: "crash", 12: "exit", 14: "greedy", 19: "stop"}
    found = contents(fresh.batches(requests(kinds)))
    expected = np.arange(20).reshape(5, 4)
    for number in kinds:
        expected.flat[number] = 1000 + 100 * (number // 4) + 10 * (number % 4) + 1
    assert found == expected.tolist()
    lines = [json.loads(line) for line in fresh.quarantine.path.read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        "clip2": "timeout: took longer than 2 s",
        "clip5": "crashed: the process ended by SIGABRT",
        "clip6": "ValueError: no {such} frame",
        "clip9": "crashed: the process ended by SIGSEGV",
        "clip12": "crashed: the process exited with 3",
        "clip14": "crashed: the process ended by SIGKILL",
        "clip19": "timeout: took longer than 2 s",
    }
    assert {(line["shard"], line["offset"]) for line in lines} == {("a.tar", number) for number in kinds}


def test_a_resumed_run_replaces_without_another_try(fresh):
    kinds = {6: "raise", 13: "raise"}
    whole = contents(fresh.batches(requests(kinds)))
    state = json.loads(json.dumps(fresh.quarantine.state_dict()))
    fresh.quarantine = Quarantine()
    fresh.quarantine.load_state_dict(state)
    # They would hang now, were they tried.
    assert contents(fresh.batches(requests(dict.fromkeys(kinds, "hang")))) == whole


def test_a_sample_is_out_from_its_first_failure_on_and_not_before(fresh):
    fresh.quarantine.load_state_dict([["a.tar", "clip7", 7, [2, 1], "failed"]])
    found = contents(fresh.batches(requests(numbers=[7, 1, 2, 7, 4, 7, 8, 9, 7, 7, 10, 7, *[0] * 8])))
    assert found[:3] == [[7, 1, 2, 7], [4, 7, 8, 9], [7, 1211, 10, 1231]]


def test_a_fault_that_is_noticed_late_still_counts_from_its_place_on(fresh):
    # Clip 7 of step 0 fails only after the same sample, which is sound there, was read for step 1.
    works = [[clip(0, 0, 7, "hang"), clip(0, 1, 1)], [clip(1, 0, 7), clip(1, 1, 2)]]
    assert contents(fresh.batches(works)) == [[1001, 1], [1101, 2]]


def test_a_stand_in_that_cannot_be_read_gets_one_itself(fresh, monkeypatch):
    def poor(asked, attempt):
        return stand_in(asked, attempt)._replace(what=("raise" if attempt < 3 else "slow", attempt))

    monkeypatch.setattr(fresh, "stand_in", poor)
    assert contents(fresh.batches(requests({1: "raise"}, steps=1))) == [[0, 3, 2, 3]]
    assert [sample.key for sample in fresh.quarantine.losses] == ["clip1", "clip1011", "clip1012"]


def test_one_more_than_the_budget_ends_the_run_with_a_summary(fresh):
    fresh.quarantine.budget = 2
    batches = fresh.batches(requests({3: "raise", 6: "raise", 11: "raise"}))
    with pytest.raises(QuarantineError) as error:
        contents(batches)
    assert re.search(
        r"found 3 samples that cannot be read \(3 ValueError; 3 a\.tar\), expected at most 2; the last one: a\.tar: "
        r"clip11: ValueError: no \{such\} frame; all of them: .*quarantine\.jsonl$",
        str(error.value),
    )


def test_a_worker_killed_from_outside_costs_no_sample(fresh):
    batches, found = fresh.batches(requests(steps=12)), []
    for batch in batches:
        found += contents([batch])
        os.kill(random.Random(len(found)).choice(fresh.pool).process.pid, signal.SIGKILL)
        del batch
    assert found == np.arange(48).reshape(12, 4).tolist()
    assert fresh.quarantine.losses == {}


def test_a_clip_whose_worker_is_killed_again_and_again_is_still_read(fresh):
    killed = []

    def kill():
        while len(killed) < 3:
            for worker in list(fresh.pool):
                if worker.ready and worker.errands and worker.process.pid not in killed:
                    killed.append(worker.process.pid)
                    worker.process.kill()
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert contents(fresh.batches([[clip(0, 0, 1, "nap")]])) == [[1]]
    assert len(killed) == 3


def test_reading_ahead_is_bounded_and_memory_is_used_again(fresh):
    taken, count, used = [], fresh.slots.count, fresh.slots.count - len(fresh.slots.free)
    for number, batch in enumerate(fresh.batches(taken.append(r) or r for r in requests(steps=30))):
        time.sleep(0.01)
        assert len(taken) <= number + 1 + fresh.pace.ahead
        del batch
    assert fresh.slots.count <= max(count, used + fresh.pace.ahead + 2)


def test_batches_that_are_kept_stay_as_they_are(fresh):
    kept = list(fresh.batches(requests(steps=8)))
    assert contents(kept) == np.arange(32).reshape(8, 4).tolist()


def test_an_iteration_may_be_left_and_another_begun(fresh):
    first = fresh.batches(requests())
    next(first)
    first.close()
    assert len(contents(fresh.batches(requests(steps=7)))) == 7


def test_an_error_in_the_requests_reaches_the_caller(fresh):
    def broken():
        yield from requests(steps=1)
        raise KeyError("no such shard")

    with pytest.raises(KeyError, match="no such shard"):
        contents(fresh.batches(broken()))


def test_a_batch_that_does_not_fit_is_an_error(fresh):
    with pytest.raises(ValueError, match="found a batch of 3000000 bytes, expected at most slot_bytes="):
        list(fresh.batches([[clip(0, 0, 1, shape=(100, 100, 100, 3))]]))


def test_workers_that_cannot_start_are_an_error():
    # A function that no other process can import.
    act_here = type(act)(act.__code__, {}, "nowhere")
    act_here.__module__, act_here.__qualname__ = "tests.material.stand_in_codec", "nowhere"
    sys.modules["tests.material.stand_in_codec"].nowhere = act_here
    try:
        with (
            Workers(act_here, 1, SIZE, stand_in, Quarantine()) as workers,
            pytest.raises(RuntimeError, match="ended before their first clip: crashed: the process exited with 1"),
        ):
            list(workers.batches(requests()))
    finally:
        del sys.modules["tests.material.stand_in_codec"].nowhere


@pytest.mark.parametrize("how", [{"workers": 0}, {"slot_bytes": 0}, {"timeout": 0}, {"pace": Pace(ahead=0)}])
def test_numbers_that_make_no_sense_are_an_error(how):
    with pytest.raises(ValueError, match="workers: found "):
        Workers(**{"function": act, "workers": 1, "slot_bytes": 1, "stand_in": stand_in, "quarantine": None, **how})


def test_a_slot_is_free_once_nothing_refers_to_it():
    slots = Slots(100)
    number, array = slots.take()
    view = array[:10].reshape(2, 5)
    del array
    assert not slots.free
    assert slots.take()[0] == 1
    del view
    assert number in slots.free


PARENT = """
import os, signal, sys, time
sys.path.insert(0, {path!r})
from tests.material.stand_in_codec import Clip, act
from videodiff.data.loader.quarantine import Quarantine, SampleId
from videodiff.data.loader.workers import Workers
if __name__ == "__main__":
    tasks = [
        Clip((0, place), SampleId("a.tar", "", place), (1, 1, 1, 3), (kind, 0))
        for place, kind in enumerate(["slow", "orphan"])
    ]
    with Workers(act, 2, 8, None, Quarantine(), timeout=0.5) as workers:
        batches = workers.batches([task] for task in tasks)
        next(batches)
        print(*(worker.process.pid for worker in workers.pool), flush=True)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_worker_outlives_its_parent_for_long(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(path=str(Path(__file__).parents[3])))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 2, run.stderr
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid):
    """Tell whether a process runs; one that has ended and whom nobody waits for does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


# Faults in real tars.


@pytest.fixture(scope="module")
def sound_tars(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("sound"), count=12, frames=8)


@pytest.fixture(scope="module")
def readers():
    # A disk that other work keeps busy for three seconds, and the process killed before, once cost a sound clip.
    with Workers(read, 2, 4 * 4 * 32 * 32 * 3, None, Quarantine(), timeout=6.0) as workers:
        yield workers


def damage(root, dice):
    """Spoil a few clips of a dataset, each in its own way; return those that are orders to a decoder."""
    rows, orders = [Manifest.load(root).row(i) for i in range(12)], {}
    kinds = ["bits", "bits", "name", dice.choice(["hang", "abort", "abort", "crash", "crash"]), "cut"]
    for kind, row in zip(kinds, dice.sample(rows, len(kinds)), strict=True):
        path = root / row["shard"]
        data = bytearray(path.read_bytes())
        if kind == "bits":
            for _ in range(20):
                data[dice.randrange(row["offset"], row["offset"] + row["size"])] ^= 1 << dice.randrange(8)
        elif kind == "name":
            data[row["offset"]] ^= 1
        elif kind == "cut":
            data = data[: row["offset"] + dice.randrange(row["size"])]
        else:
            start = row["offset"] + 512
            data[start : start + 20] = f"do {kind}".encode().ljust(20)
            orders[row["key"]] = kind
        path.write_bytes(data)
    return rows, orders


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_run_over_damaged_tars_ends_with_every_bad_sample_named(seed, sound_tars, readers, tmp_path):
    dice, root = random.Random(seed), shutil.copytree(sound_tars, tmp_path / "tars")
    rows, orders = damage(root, dice)

    def work(step, place, index):
        row = rows[index]
        sample = SampleId(row["shard"], row["key"], row["offset"])
        what = (str(root / row["shard"]), row["key"], row["offset"], row["size"], index % 5)
        return Clip((step, place), sample, (4, 32, 32, 3), what)

    def other(asked, attempt):
        return work(*asked.order, (asked.order[0] * 7 + asked.order[1] + attempt * 5) % 12)

    def readable(asked):
        with np.errstate(all="ignore"):
            try:
                return asked.sample.key not in orders and bool(read(asked, np.empty((4, 32, 32, 3), np.uint8)))
            except Exception:
                return False

    sound = {index: readable(work(0, 0, index)) for index in range(12)}
    asked = [[work(step, place, dice.randrange(12)) for place in range(4)] for step in range(6)]
    expected = [[first_sound(one, other, sound, rows) for one in batch] for batch in asked]
    readers.stand_in, readers.quarantine = other, Quarantine(tmp_path / "quarantine.jsonl")
    killer = threading.Timer(dice.uniform(0, 0.3), lambda: dice.choice(readers.pool).process.kill())
    killer.start()
    found = [batch.tasks for batch in readers.batches(asked)]
    killer.join()
    assert [[one.sample.key for one in batch] for batch in found] == expected
    named = {json.loads(line)["key"] for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()}
    assert named <= {rows[index]["key"] for index in range(12) if not sound[index]}
    met = {one.sample.key for batch in asked for one in batch}
    assert {rows[index]["key"] for index in range(12) if not sound[index]} & met <= named


def first_sound(asked, other, sound, rows):
    """Return the key that ends up at a place, from what can be read alone."""
    keys, attempt, taken = {row["key"]: index for index, row in enumerate(rows)}, 0, asked
    while not sound[keys[taken.sample.key]]:
        attempt += 1
        taken = other(asked, attempt)
    return taken.sample.key


@pytest.mark.parametrize("killed", [False, True])
def test_a_process_that_has_read_much_is_replaced_without_a_trace(fresh, killed):
    """By one that is ready when it leaves, whichever of the two dies before."""
    fresh.pace, before, until = Pace(life=5), {worker.process.pid for worker in fresh.pool}, time.monotonic() + 60
    while before & {worker.process.pid for worker in fresh.pool} and time.monotonic() < until:
        if killed and any(worker.heir for worker in fresh.pool):
            random.choice(fresh.pool).process.kill()
            killed = False
        assert contents(fresh.batches(requests(steps=20))) == np.arange(80).reshape(20, 4).tolist()
    fresh.pace = Pace(life=math.inf)
    while len(fresh.pool) > 2 and time.monotonic() < until:
        assert contents(fresh.batches(requests(steps=20))) == np.arange(80).reshape(20, 4).tolist()
    assert len(fresh.pool) == 2
    assert not before & {worker.process.pid for worker in fresh.pool}
    assert not fresh.quarantine.losses
