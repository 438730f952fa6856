import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.data.order.arithmetic import (
    Mesh,
    absorb,
    deal,
    draw,
    micro_batches,
    mix,
    parts,
    permute,
    positions,
    usual_batch,
)

SEEDS = st.integers(-(2**63), 2**63 - 1)


def shuffled(place, samples, *key):
    return permute(place, samples, absorb(*key))


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**9))
def test_a_permutation_holds_every_sample_once(samples, seed, epoch):
    assert np.array_equal(np.sort(shuffled(np.arange(samples), samples, seed, epoch)), np.arange(samples))


@given(st.integers(1, 10**12), SEEDS, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8))
def test_a_place_means_the_same_alone_and_among_others(samples, seed, shares):
    places = [int(share * samples) for share in shares]
    together = shuffled(places, samples, seed)
    alone = [int(shuffled(place, samples, seed)) for place in places]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < samples)).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [shuffled(np.arange(50), 50, seed, epoch).tolist() for epoch in range(4) for seed in range(4)]
    assert len({tuple(order) for order in orders}) == 16


def test_every_order_of_five_samples_is_about_equally_likely():
    orders = shuffled(np.arange(5), 5, np.arange(6000)[:, None])
    seen = Counter(map(tuple, orders.tolist()))
    chi_squared = sum((count - 50) ** 2 / 50 for count in seen.values())
    # 119 degrees of freedom: mean 119, standard deviation 15.4.
    assert len(seen) == 120
    assert chi_squared < 119 + 5 * 15.4


def test_neighbours_in_the_dataset_are_no_neighbours_in_the_stream():
    orders = np.stack([shuffled(np.arange(1000), 1000, seed) for seed in range(50)])
    # Among 1000 shuffled samples one pair a permutation is expected to be in sequence.
    assert 0.6 < (np.diff(orders, axis=1) == 1).sum(axis=1).mean() < 1.5


def test_the_order_is_the_same_on_every_machine():
    # SplitMix64 from the state 0 begins with these two numbers (Vigna's reference implementation).
    first = mix(np.zeros(1, dtype=np.uint64))
    second = mix(np.full(1, 0x9E3779B97F4A7C15, dtype=np.uint64))
    assert [int(first[0]), int(second[0])] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 8))
def test_a_micro_batch_is_the_largest_divisor_of_a_share_within_the_limit(share, limit, world):
    count = micro_batches([share * world], share * world, limit, world)
    assert share / count == max(n for n in range(1, share + 1) if share % n == 0 and n <= limit)


def test_a_process_without_a_limit_takes_its_share_at_once():
    assert micro_batches([12], 12, None, 4) == 1


@pytest.mark.parametrize(
    ("sizes", "limit", "count"),
    # The limit is about 16 clips; 24 and 8 are cut into as many parts.
    [([16, 24, 8], 4, 4), ([16, 24, 8], 3, 8), ([16, 2], 8, 2)],
)
def test_the_global_batch_of_each_bucket_is_cut_into_as_many_micro_batches(sizes, limit, count):
    assert micro_batches(sizes, usual_batch(16, sizes), limit, 1) == count


def test_the_micro_batch_is_a_part_of_what_all_batches_have_in_common_where_none_is_the_usual_one():
    assert micro_batches([24, 40], usual_batch(16, [24, 40]), 4, 1) == 2


@pytest.mark.parametrize(
    ("sizes", "limit", "world", "count", "said"),
    [
        ([16], None, 5, None, "data.global_batch: found 16, expected a multiple of 5 processes (valid processes: 1,"),
        ([16, 24, 16], 4, 16, None, "data.global_batch: found 16, 24, expected a multiple of 16 processes (valid"),
        ([16, 2], 4, 1, None, "data.micro_batch: found 4, expected at least 8: global batches of 16, 2 clips have"),
        ([16], 0, 1, None, "data.micro_batch: found 0, expected at least 1"),
        ([0], 1, 1, None, "data.global_batch: found 0, expected"),
        ([48], None, 3, 4, "data.batch.micro_batches: found 4, expected a multiple of 3 processes (valid"),
        ([48, 6], None, 2, 4, "data.global_batch: found 48, 6, expected multiples of 4"),
    ],
)
def test_batches_that_do_not_divide_are_named_with_the_valid_numbers(sizes, limit, world, count, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        micro_batches(sizes, usual_batch(16, sizes), limit, world, count=count)


@given(st.integers(1, 1000), st.lists(SEEDS, min_size=1, max_size=4))
def test_a_draw_depends_on_its_key_alone_and_stays_below_its_bound(below, key):
    assert draw(below, *key) == draw(below, *key)
    assert 0 <= draw(below, *key) < below


def test_draws_of_different_keys_are_spread_evenly():
    counts = np.bincount([draw(10, 1, epoch, index) for epoch in range(50) for index in range(100)], minlength=10)
    assert np.abs(counts - 500).max() < 5 * 500**0.5


def test_the_order_of_a_key_counts():
    assert [draw(2**60, 1, 2), draw(2**60, 2, 1)] != [draw(2**60, 2, 1), draw(2**60, 1, 2)]


@settings(max_examples=300)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), SEEDS)
def test_many_permutations_at_once_are_each_a_permutation(sizes, seed):
    which = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    found = permute(place, np.array(sizes)[which], absorb(seed, which))
    for number, size in enumerate(sizes):
        mine = found[which == number]
        assert np.array_equal(np.sort(mine), np.arange(size))
        assert np.array_equal(mine, permute(np.arange(size), size, absorb(seed, number)))


@settings(max_examples=500)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any), st.integers(0, 10**12))
def test_turns_are_dealt_by_weight_to_within_two_and_exactly_after_a_round(weights, later):
    total, players = sum(weights), np.arange(len(weights))
    turn = np.arange(total)
    who, before = deal(turn, weights)
    taken = np.cumsum(who[:, None] == players, axis=0)
    assert np.array_equal(taken[-1], weights)
    assert np.array_equal(before, taken[turn, who] - 1)
    off = np.abs(taken - (turn[:, None] + 1) * np.array(weights) / total).max()
    assert off < (2 if sum(weight > 0 for weight in weights) > 3 else 1)
    again, rounds = deal(turn + later * total, weights)
    assert np.array_equal(again, who)
    assert np.array_equal(rounds, before + later * np.array(weights)[who])


@pytest.mark.parametrize(("place", "samples"), [(5, 5), (-1, 5), (0, 0)])
def test_a_place_outside_of_a_permutation_is_an_error_and_no_endless_walk(place, samples):
    with pytest.raises(ValueError, match=f"found place {place} of {samples}"):
        permute(np.array([0, place]), np.array([1, samples]), absorb(0))


def test_five_turns_to_three_are_those_of_a_line_on_squared_paper():
    assert deal(np.arange(8), [5, 3])[0].tolist() == [0, 1, 0, 0, 1, 0, 1, 0]


@given(st.lists(st.fractions(0, 10**9), min_size=1, max_size=5).filter(any))
def test_parts_have_the_ratio_of_the_shares_and_fit_the_arithmetic(shares):
    found, total = parts(shares), sum(shares)
    assert sum(found) <= 2**31 + len(shares)
    assert [weight > 0 for weight in found] == [share > 0 for share in shares]
    assert all(abs(w / sum(found) - float(share / total)) < 1e-8 for w, share in zip(found, shares, strict=True))


def test_turns_and_weights_of_any_size_stay_exact():
    big = [2**31 - 3, 1, 2]
    assert [int(value) for value in deal(2**31 * 10**6 - 1, big)] in [[who, big[who] * 10**6 - 1] for who in range(3)]


@pytest.mark.parametrize("mesh", [Mesh(6, 6, 2), Mesh(-1, 6, 2), Mesh(0, 0, 1)])
def test_a_rank_beyond_its_world_is_an_error(mesh):
    with pytest.raises(ValueError, match="mesh: found rank"):
        positions(24, 0, 1, mesh)


@pytest.mark.parametrize(("sequence", "nearest"), [(4, 3), (0, 1), (7, 6), (100, 6)])
def test_sequence_groups_that_do_not_fill_the_world_are_an_error_with_the_nearest_size(sequence, nearest):
    said = rf"strategy.sequence_parallel: found {sequence} for 6 .* 1, 2, 3, 6 \(nearest: {nearest}\)"
    with pytest.raises(ValueError, match=said):
        positions(24, 0, 1, Mesh(0, 6, sequence))


def test_the_first_rank_of_a_sequence_group_reads():
    assert [rank for rank in range(6) if Mesh(rank, 6, 3).reads] == [0, 3]


def test_a_micro_batch_beyond_those_of_a_step_is_an_error():
    with pytest.raises(ValueError, match="found micro-batch 2, expected one of 2"):
        positions(24, 2, 2, Mesh())
