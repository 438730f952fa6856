"""Random datasets, buckets, mixtures, clusters and interruptions: always the same global batches, each sample once."""

import doctest
import hashlib
import itertools
import json
import os
import struct
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.data.order.arithmetic import Mesh, check_batch_sizes, positions, resume
from videodiff.data.order.buckets import Bucket
from videodiff.data.order.mixture import EPOCHS_KEPT, Curriculum, Dataset, Mixture, repeats

# `make soak` asks for ten times as many examples.
RUNS = int(os.environ.get("ORDER_RUNS", "1"))
BUCKETS = [Bucket(8, 64, 64, keep=0.5), Bucket(1, 64, 64)]
COUNTS = np.array([[3, 1], [2, 0], [4, 2], [1, 1]])


def one_dataset(**how):
    how = {"datasets": [Dataset(COUNTS, np.array([3, 2]))], "buckets": BUCKETS, "batch_sizes": [2, 6], **how}
    return Mixture(**how)


@st.composite
def recipes(draw, unit=1):
    """Return the arguments of a mixture in which no bucket is empty; batches are multiples of `unit`."""
    keeps = draw(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]), min_size=1, max_size=4))
    kinds = draw(st.sets(st.integers(1, 2 ** len(keeps) - 1), max_size=3)) | {1 << i for i in range(len(keeps))}
    datasets = []
    for number in range(draw(st.integers(1, 3))):
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        counts = random.integers(0, 7, (draw(st.integers(1, 6)), len(kinds)))
        counts[-1] += number == 0
        # Small datasets with large batches would be many epochs a batch, and the test slow.
        counts *= 1 + unit // 4
        repeat = Fraction(draw(st.integers(1, 5)), draw(st.integers(1, 3)))
        datasets.append(Dataset(counts, np.array(sorted(kinds)), repeat))
    datasets = [data for data in datasets if data.counts.any()]
    return {
        "datasets": datasets,
        "buckets": [Bucket(len(keeps) - i, 8, 8, keep=keep) for i, keep in enumerate(keeps)],
        "batch_sizes": [unit * draw(st.integers(2 if unit == 1 else 1, 12 // min(unit, 6))) for _ in keeps],
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "window": draw(st.none() | st.integers(1, 7)),
    }


def rows(batch):
    """Return the samples of a batch in the order of their positions: dataset, epoch, shard, kind, member."""
    columns = (batch.dataset, batch.epoch, batch.shard, batch.kind, batch.member)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(deadline=None, max_examples=100 * RUNS)
@given(recipes())
def test_every_sample_comes_exactly_once_an_epoch(recipe):
    mixture = Mixture(**recipe)
    steps = min(24, 2 * int(mixture.epoch_steps) + 2)
    batches = [mixture.batch(step) for step in range(steps)]
    seen = Counter(row for batch in batches for row in rows(batch))
    assert set(seen.values()) == {1}
    for number, (data, stream) in enumerate(zip(mixture.datasets, mixture.streams, strict=True)):
        everything = {
            (shard, kind, member)
            for shard, counts in enumerate(data.counts.tolist())
            for kind, count in zip(data.kinds.tolist(), counts, strict=True)
            for member in range(count)
        }
        used = [n for n, samples in enumerate(stream.samples) if samples]
        drawn = [sum((batch.dataset == number).sum() for batch in batches if batch.bucket is mixture.buckets[n])
                 for n in used]  # fmt: skip
        for epoch in range(min(count // stream.samples[n] for n, count in zip(used, drawn, strict=True))):
            assert {row[2:] for row in seen if row[:2] == (number, epoch)} == everything


@settings(deadline=None, max_examples=80 * RUNS)
@given(recipes(), st.integers(0, 10**9))
def test_buckets_and_datasets_get_their_shares_after_any_number_of_steps(recipe, step):
    mixture = Mixture(**recipe)
    share = [
        [data.repeat * stream.samples[n] for data, stream in zip(mixture.datasets, mixture.streams, strict=True)]
        for n in range(len(mixture.buckets))
    ]
    bucket, before = mixture.bucket_of(step)
    steps = [sum(samples) / size for samples, size in zip(share, mixture.batch_sizes, strict=True)]
    assert abs(before - step * steps[bucket] / sum(steps)) < 2
    batch = mixture.batch(step)
    assert batch.bucket is mixture.buckets[bucket]
    position = before * mixture.batch_sizes[bucket] + batch.position[0]
    stream = mixture.streams[batch.dataset[0]]
    least = batch.epoch[0] * stream.samples[bucket]
    expected = position * share[bucket][batch.dataset[0]] / sum(share[bucket])
    assert least - 2 < expected < least + stream.samples[bucket] + 2


@settings(deadline=None, max_examples=150 * RUNS)
@given(st.data(), st.integers(1, 64), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**9))
def test_the_ranks_of_any_world_share_out_the_same_global_batch(data, world, accumulate, sequence, step):
    recipe = data.draw(recipes(unit=world * accumulate))
    whole = Mixture(**recipe).batch(step)
    size, ranks = len(whole.position), [Mesh(rank, world * sequence, sequence) for rank in range(world * sequence)]
    taken = [positions(size, micro, accumulate, mesh) for micro in range(accumulate) for mesh in ranks]
    assert len({len(share) for share in taken}) == 1
    assert np.array_equal(np.sort(np.concatenate(taken)), np.repeat(np.arange(size), sequence))
    rank = data.draw(st.integers(0, len(ranks) - 1))
    micro = data.draw(st.integers(0, accumulate - 1))
    mine = Mixture(**recipe).batch(step, micro, accumulate, ranks[rank])
    assert mine.bucket == whole.bucket
    assert rows(mine) == [rows(whole)[place] for place in mine.position]
    partner = rank - rank % sequence
    assert rows(mine) == rows(Mixture(**recipe).batch(step, micro, accumulate, ranks[partner]))


@st.composite
def runs(draw):
    """Return a recipe and what befell the run: for each stretch the cluster, the workers and the steps."""
    unit = draw(st.sampled_from([1, 2, 6, 8, 48, 64]))
    stretch = st.tuples(
        st.sampled_from([n for n in range(1, unit + 1) if unit % n == 0]),
        st.integers(1, 2),
        st.integers(0, 8),
        st.integers(1, 3),
    )
    return draw(recipes(unit)), unit, draw(st.integers(0, 10**6)), draw(st.lists(stretch, min_size=1, max_size=3))


@settings(deadline=None, max_examples=80 * RUNS)
@given(runs(), st.data())
def test_a_run_that_is_stopped_and_goes_on_elsewhere_sees_what_an_uninterrupted_one_sees(run, data):
    recipe, unit, step, stretches = run
    straight = Mixture(**recipe)
    state = json.dumps({"step": step, **straight.identity()})
    for world, sequence, workers, steps in stretches:
        resumed = Mixture(**recipe)
        start = resume(json.loads(state), resumed.identity())
        accumulate = max(n for n in range(1, 4) if unit // world % n == 0)
        rank = Mesh(data.draw(st.integers(0, world * sequence - 1)), world * sequence, sequence)
        asked = [(start + n, micro) for n in range(steps) for micro in range(accumulate)]
        # Each worker computes every `workers`-th micro-batch, in a process that knows nothing of the others.
        hands = [Mixture(**recipe) for _ in range(max(workers, 1))]
        whole = {at: straight.batch(at) for at in range(start, start + steps)}
        for number, (at, micro) in enumerate(asked):
            got = hands[number % len(hands)].batch(at, micro, accumulate, rank)
            assert len(got.position) == len(whole[at].position) // (world * accumulate)
            assert rows(got) == [rows(whole[at])[place] for place in got.position]
        state = json.dumps({"step": start + steps, **resumed.identity()})


@settings(deadline=None, max_examples=60 * RUNS)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.integers(1, 12), st.integers(0, 99))
def test_shards_are_read_window_by_window(sizes, window, seed):
    data = Dataset(np.array(sizes)[:, None], np.array([1]))
    mixture = Mixture([data], [Bucket(1, 8, 8)], [sum(sizes)], seed, window)
    shard = mixture.batch(0).shard
    line, _ = mixture.streams[0].epoch(0)
    place = np.argsort(line)[shard] // window
    assert (np.diff(place) >= 0).all()


def test_a_sample_changes_its_bucket_from_epoch_to_epoch_by_its_keep():
    # One sample a shard, as unlike a clip's neighbours as can be.
    mixture = one_dataset(datasets=[Dataset(np.ones((10, 1), int), np.array([3]))], batch_sizes=[5, 5])
    clips = Counter(sample for step in range(0, 400, 2) for sample in mixture.batch(step).shard.tolist())
    assert all(mixture.bucket_of(step)[0] == 0 for step in range(0, 400, 2))
    # 200 draws of probability 1/2: standard deviation 7.
    assert len(clips) == 10
    assert max(abs(count - 100) for count in clips.values()) < 32


def test_every_order_of_the_samples_of_a_window_is_about_equally_likely():
    data = Dataset(np.array([[2], [1], [1]]), np.array([1]))
    mixtures = [Mixture([data], BUCKETS[:1], [4], seed) for seed in range(20)]
    seen = Counter(tuple(row[2:] for row in rows(mixture.batch(epoch))) for mixture in mixtures for epoch in range(30))
    # 23 degrees of freedom: mean 23, standard deviation 6.8.
    assert len(seen) == 24
    assert sum((count - 25) ** 2 / 25 for count in seen.values()) < 23 + 5 * 6.8


def test_a_stand_in_is_another_sample_of_the_same_bucket_and_always_the_same_one():
    mixture = one_dataset()
    for step in range(8):
        batch = mixture.batch(step)
        found = [mixture.stand_in(step, 1, attempt) for attempt in range(20)]
        again = [one_dataset().stand_in(step, 1, attempt) for attempt in range(20)]
        assert [rows(b) for b in found] == [rows(b) for b in again]
        assert {b.bucket for b in found} == {batch.bucket}
        assert {(b.step, *b.position.tolist()) for b in found} == {(step, 1)}, "its noise is that of the place it takes"
        assert len({rows(b)[0][2:] for b in found} - {rows(batch)[1][2:]}) > 2


@pytest.mark.parametrize("weights", [[0.7, 0.1, 0.2], [7, 1, 2]])
def test_weights_are_shares_of_the_samples_drawn(weights):
    data = [Dataset(np.full((4, 1), n), np.array([3])) for n in (10, 40, 5)]
    counts = [repeat * data.counts.sum() for repeat, data in
              zip(repeats(weights, [40, 160, 20]), data, strict=True)]  # fmt: skip
    assert counts == [Fraction(7, 10) * 220, 22, 44]


def test_a_curriculum_goes_from_stage_to_stage_by_step_alone():
    first, second = one_dataset(seed=1), one_dataset(seed=2, batch_sizes=[4, 12])
    course = Curriculum([(0, first), (5, second)])
    assert rows(course.batch(4)) == rows(first.batch(4))
    assert rows(course.batch(7)) == [(1, *row[1:]) for row in rows(second.batch(2))]
    assert course.batch(7).step == 7
    half = course.batch(7, mesh=Mesh(1, 2))
    assert rows(half) == [rows(course.batch(7))[place] for place in half.position]
    for step, mixture, number in ((4, first, 0), (7, second, 1)):
        other, expected = course.stand_in(step, 1, 3), mixture.stand_in(step - 5 * number, 1, 3)
        assert (other.step, rows(other)) == (step, [(number, *row[1:]) for row in rows(expected)])
    assert course.identity(0) == course.identity(5) == {"stages": [0], **first.identity()}
    state = {"step": 7, **course.identity(7)}
    assert resume(state, Curriculum([(0, one_dataset(seed=1)), (5, second), (7, one_dataset())]).identity(7)) == 7
    with pytest.raises(ValueError, match=r"data.stage_5.batch_sizes: found \[2, 6\], expected \[4, 12\]"):
        resume(state, Curriculum([(0, first), (5, one_dataset(seed=2))]).identity(7))
    for others in ([(0, first)], [(0, first), (4, second)], [(0, first), (5, second), (6, one_dataset())]):
        with pytest.raises(ValueError, match=r"data.stages: found .*, expected \[0, 5\] as in the checkpoint"):
            resume(state, Curriculum(others).identity(7))


def test_a_curriculum_reads_ahead_in_its_stage_and_holds_what_any_stage_holds():
    one, two = Dataset(COUNTS, np.array([3, 2])), Dataset(COUNTS[::-1], np.array([3, 2]))
    first = one_dataset(datasets=[one], seed=1, window=1)
    second = one_dataset(datasets=[one, two], seed=2, window=1, batch_sizes=[4, 12])
    course = Curriculum([(0, first), (5, second)])
    for step, wanted in ((4, [*first.upcoming(4), [], []]), (7, [[], *second.upcoming(2)])):
        assert [found.tolist() for found in course.upcoming(step)] == [list(shards) for shards in wanted]
    assert course.open_shards() == first.open_shards() + second.open_shards()
    assert course.batch_sizes == [2, 6, 4, 12]


def test_datasets_that_are_alike_have_orders_of_their_own():
    data = Dataset(np.full((6, 1), 3), np.array([1]))
    mixture = Mixture([data, data], BUCKETS[:1], [36])
    seen = [[row[2:] for row in rows(mixture.batch(0)) if row[0] == number] for number in (0, 1)]
    assert sorted(seen[0]) == sorted(seen[1])
    assert seen[0] != seen[1]


def test_few_epochs_are_held_in_memory_however_many_were_asked_for():
    mixture, again = one_dataset(), one_dataset()
    batches = [mixture.batch(step) for step in range(60)]
    assert batches[-1].epoch.max() > 2 * EPOCHS_KEPT
    assert len(mixture.streams[0].epochs) == EPOCHS_KEPT
    assert rows(mixture.batch(0)) == rows(batches[0]) == rows(again.batch(0))


def test_the_fingerprint_of_a_dataset_is_the_checksum_that_checkpoints_have():
    numbers = [4, 2, 3, 1, 2, 0, 4, 2, 1, 1, 3, 2]
    assert one_dataset().identity()["fingerprint"] == hashlib.sha256(struct.pack("<12q", *numbers)).hexdigest()


@pytest.mark.parametrize(("steps", "seeds"), [((1, 5), (1, 2)), ((0, 0), (1, 2)), ((0, 5), (1, 1)), ((), ())])
def test_a_curriculum_without_a_beginning_an_order_or_seeds_of_its_own_is_an_error(steps, seeds):
    stages = [(step, one_dataset(seed=seed)) for step, seed in zip(steps, seeds, strict=True)]
    with pytest.raises(ValueError, match="curriculum: found first steps"):
        Curriculum(stages)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("seed", {"seed": 1}),
        ("window", {"window": 3}),
        ("batch_sizes", {"batch_sizes": [2, 12]}),
        ("buckets", {"buckets": [Bucket(8, 64, 64, keep=0.4), BUCKETS[1]]}),
        ("repeats", {"datasets": [Dataset(COUNTS, np.array([3, 2]), Fraction(2))]}),
        ("fingerprint", {"datasets": [Dataset(COUNTS[::-1], np.array([3, 2]))]}),
    ],
)
def test_a_state_of_another_order_is_an_error_that_names_what_differs(name, other):
    with pytest.raises(ValueError, match=f"data.{name}: found .*, expected .* as in the checkpoint"):
        resume({"step": 3, **one_dataset().identity()}, one_dataset(**other).identity())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"datasets": [Dataset(COUNTS, np.array([2, 2]))]}, "bucket 8 x 64 x 64: found no sample that falls into it"),
        ({"datasets": []}, "mixture: found 0 datasets"),
        ({"batch_sizes": [2]}, "a batch of at least 1 for each bucket"),
        ({"batch_sizes": [2, 0]}, "a batch of at least 1 for each bucket"),
        ({"window": 0}, "window: found 0, expected at least one shard"),
        ({"datasets": [Dataset(COUNTS, np.array([3, 2]), Fraction(0))]}, "found repeat 0 .*expected a repeat above 0"),
        ({"datasets": [Dataset(COUNTS, np.array([3]))]}, "expected .* counts by shard and kind"),
    ],
)
def test_a_mixture_that_cannot_be_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        one_dataset(**wrong)


@pytest.mark.parametrize(("weights", "samples"), [([1, 0], [5, 5]), ([1, -0.5], [5, 5]), ([1], [5, 5])])
def test_a_weight_that_is_not_positive_or_not_there_is_an_error(weights, samples):
    with pytest.raises(ValueError, match=r"weights: found .*, expected one above 0 for each"):
        repeats(weights, samples)


def test_a_global_batch_that_does_not_divide_is_an_error_that_names_what_would():
    message = (
        "found 24, 36 for 5 data ranks x 2 micro-batches = 10, expected this product to be one of 1, 2, 3, 4, 6, 12"
    )
    with pytest.raises(ValueError, match=message):
        check_batch_sizes([24, 36], 2, Mesh(0, 10, 2))
    check_batch_sizes([24, 36], 2, Mesh(0, 6, 2))


def test_a_step_before_the_first_is_an_error():
    with pytest.raises(ValueError, match="found step -1"):
        one_dataset().batch(-1)


def test_the_example_of_the_documentation_is_what_the_code_does():
    result = doctest.testfile(str(Path(__file__).parents[3] / "docs" / "streaming.md"), module_relative=False)
    assert result.attempted >= 15
    assert result.failed == 0


@settings(deadline=None, max_examples=50 * RUNS)
@given(recipes(), st.integers(0, 10**6))
def test_what_a_step_reads_next_is_among_the_shards_that_are_upcoming(recipe, step):
    mixture = Mixture(**recipe)
    bucket, before = mixture.bucket_of(step)
    later = next(s for s in itertools.count(step + 1) if mixture.bucket_of(s) == (bucket, before + 1))
    batch, upcoming = mixture.batch(later), mixture.upcoming(step)
    for dataset, shard in zip(batch.dataset.tolist(), batch.shard.tolist(), strict=True):
        assert shard in upcoming[dataset]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_few_more_shards_are_held_than_are_read(window):
    # Two shards a step. Shuffle windows are read whole; beyond them a window of what was just read, and the next one.
    mixture = Mixture([Dataset(np.full((50, 1), 10), np.array([1]))], [Bucket(1, 8, 8)], [20], window=window)
    read = [set(mixture.batch(step).shard.tolist()) for step in range(60)]
    assert len(read[0] | read[1]) <= mixture.open_shards()[0] <= len(read[0] | read[1]) + 2 * window
    for step, later in enumerate(read[1:]):
        upcoming = set(mixture.upcoming(step)[0].tolist())
        assert later <= upcoming
        assert step + 2 == len(read) or read[step + 2] <= upcoming, "those of the step after that too"
        assert len(upcoming) <= len(later) + 3 * window
    # Two buckets read the same four shards.
    assert one_dataset().open_shards() == [4]
