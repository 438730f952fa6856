from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videodiff.data.order import draw, global_positions, micro_batches, mix, rank_positions, sample_at

SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**9))
def test_every_sample_comes_exactly_once_an_epoch(samples, seed, epoch):
    found_epoch, index = sample_at(np.arange(samples) + epoch * samples, samples, seed)
    assert (found_epoch == epoch).all()
    assert np.array_equal(np.sort(index), np.arange(samples))


@given(st.integers(1, 10**12), SEEDS, st.lists(st.integers(0, 10**15), min_size=1, max_size=8))
def test_a_position_means_the_same_alone_and_among_others(samples, seed, positions):
    _, together = sample_at(positions, samples, seed)
    alone = [int(sample_at(position, samples, seed)[1]) for position in positions]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < samples)).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [sample_at(np.arange(50) + 50 * epoch, 50, seed)[1].tolist() for epoch in range(4) for seed in range(4)]
    assert len({tuple(order) for order in orders}) == 16


def test_every_order_of_five_samples_is_about_equally_likely():
    seen = Counter(tuple(sample_at(np.arange(5), 5, seed)[1].tolist()) for seed in range(6000))
    chi_squared = sum((count - 50) ** 2 / 50 for count in seen.values())
    # 119 degrees of freedom: mean 119, standard deviation 15.4.
    assert len(seen) == 120
    assert chi_squared < 119 + 5 * 15.4


def test_neighbours_in_the_dataset_are_no_neighbours_in_the_stream():
    orders = np.stack([sample_at(np.arange(1000), 1000, seed)[1] for seed in range(50)])
    # Among 1000 shuffled samples one pair a permutation is expected to be in sequence.
    assert 0.6 < (np.diff(orders, axis=1) == 1).sum(axis=1).mean() < 1.5


def test_the_order_is_the_same_on_every_machine():
    # SplitMix64 from the state 0 begins with these two numbers (Vigna's reference implementation).
    first = mix(np.zeros(1, dtype=np.uint64))
    second = mix(np.full(1, 0x9E3779B97F4A7C15, dtype=np.uint64))
    assert [int(first[0]), int(second[0])] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.data(), st.integers(0, 10**6))
def test_ranks_and_micro_batches_share_out_the_global_batch(data, step):
    world = data.draw(st.integers(1, 16))
    micro, accumulate = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    batch = world * micro * accumulate
    parts = [
        rank_positions(step, turn, batch, micro, rank, world)
        for turn in range(micro_batches(batch, micro, world))
        for rank in range(world)
    ]
    assert all(len(part) == micro for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), global_positions(step, batch))


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_global_batches_follow_one_another_without_gap_or_overlap(step, batch):
    assert global_positions(step, batch)[-1] + 1 == global_positions(step + 1, batch)[0]


@pytest.mark.parametrize(("batch", "micro", "world"), [(16, 5, 1), (16, 4, 3), (16, 0, 1), (0, 1, 1), (8, 16, 1)])
def test_a_global_batch_that_does_not_divide_is_an_error(batch, micro, world):
    with pytest.raises(ValueError, match=f"global_batch: found {batch}, expected a multiple of micro_batch {micro}"):
        micro_batches(batch, micro, world)


@pytest.mark.parametrize(("micro", "rank"), [(2, 0), (-1, 0), (0, 2), (0, -1)])
def test_a_micro_batch_or_rank_that_there_is_not_is_an_error(micro, rank):
    with pytest.raises(ValueError, match="expected below"):
        rank_positions(0, micro, 16, 4, rank, 2)


@pytest.mark.parametrize(("position", "samples"), [(-1, 5), (0, 0)])
def test_a_position_before_the_start_and_an_empty_dataset_are_errors(position, samples):
    with pytest.raises(ValueError, match="expected >= 1"):
        sample_at(position, samples, 0)


@given(st.integers(1, 1000), st.lists(SEEDS, min_size=1, max_size=4))
def test_a_draw_depends_on_its_key_alone_and_stays_below_its_bound(below, key):
    assert draw(below, *key) == draw(below, *key)
    assert 0 <= draw(below, *key) < below


def test_draws_of_different_keys_are_spread_evenly():
    counts = np.bincount([draw(10, 1, epoch, index) for epoch in range(50) for index in range(100)], minlength=10)
    assert np.abs(counts - 500).max() < 5 * 500**0.5


def test_the_order_of_a_key_counts():
    assert [draw(2**60, 1, 2), draw(2**60, 2, 1)] != [draw(2**60, 2, 1), draw(2**60, 1, 2)]
