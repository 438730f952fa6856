import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videodiff.data.order.buckets import Bucket
from videodiff.data.order.curriculum import order_of, read_stages
from videodiff.planning.cost import Budget, Cost
from videodiff.planning.steps import format_plan, plan

SMALL = {"frames": 1, "height": 16, "width": 16}
LARGE = {"frames": 8, "height": 32, "width": 32, "keep": 0.5, "global_batch": 6}
COUNTS = (np.array([[30, 20], [10, 40]]), np.array([2, 3]))
# Of a stage with one bucket.
ALONE = (np.array([[50], [50]]), np.array([1]))


def cost(bucket):
    return Cost(flops=bucket.frames * bucket.height**2, tokens=bucket.frames * bucket.height)


def stages(*found, datasets=1, seed=5, stride=2, global_batch=4, budget=None):
    sizes = budget.sizes if budget else lambda buckets: [global_batch] * len(buckets)
    return read_stages(found, datasets, seed, stride, sizes)


def test_one_stage_is_a_mixture_with_the_seed_and_the_batches_of_the_run():
    (stage,) = stages({"buckets": [LARGE, SMALL]})
    assert stage.buckets == [Bucket(8, 32, 32, keep=0.5, strides=(2,)), Bucket(1, 16, 16, strides=(2,))]
    assert (stage.first, stage.seed, stage.batch_sizes, stage.datasets, stage.weights) == (0, 5, [6, 4], [0], None)
    (order,) = order_of([stage], [COUNTS], [Fraction(3, 2)], window=1).stages
    assert (order.seed, order.window, order.datasets[0].repeat) == (5, 1, Fraction(3, 2))


def test_each_stage_begins_where_the_one_before_ends_with_a_seed_of_its_own():
    course = stages(
        {"until": 10, "buckets": [SMALL]}, {"until": 25, "buckets": [LARGE]}, {"until": None, "buckets": [LARGE, SMALL]}
    )
    assert [stage.first for stage in course] == [0, 10, 25]
    assert len({stage.seed for stage in course}) == 3
    assert all(0 <= stage.seed < 2**63 for stage in course)
    order = order_of(course, [ALONE, ALONE, COUNTS], [Fraction(1)], None)
    assert {str(order.batch(step).bucket) for step in range(10)} == {"1 x 16 x 16"}
    assert {str(order.batch(step).bucket) for step in range(10, 25)} == {"8 x 32 x 32"}
    # Every sample of a stage once an epoch of its own.
    batches = [order.batch(step) for step in range(25)]
    for drawn in (batches[:10], batches[10:]):
        seen = [tuple(row) for batch in drawn for row in zip(*(c.tolist() for c in batch[3:]), strict=True)]
        assert len(set(seen)) == len(seen)


def test_a_dataset_without_weight_is_left_out_of_a_stage():
    course = stages(
        {"until": 10, "buckets": [SMALL], "weights": [0, 1]}, {"buckets": [SMALL], "weights": [0.75, 0.25]}, datasets=2
    )
    assert [(stage.datasets, stage.weights) for stage in course] == [([1], [1]), ([0, 1], [0.75, 0.25])]
    order = order_of(course, [ALONE] * 3, [Fraction(1)] * 2, None)
    first, rest = ([order.batch(step).dataset for step in steps] for steps in (range(10), range(10, 110)))
    assert set(np.concatenate(first)) == {0}
    assert np.bincount(np.concatenate(rest)).tolist() == [0, 300, 100]


def test_steps_of_equal_time_hold_at_most_the_tokens_that_fit():
    budget = Budget(6, 512, cost)
    (stage,) = stages({"buckets": [{**LARGE, "global_batch": None}, SMALL]}, budget=budget)
    assert stage.batch_sizes == [6 * 1, 6 * 32]
    planned = plan([stage], order_of([stage], [COUNTS], [Fraction(1)], None), accumulate=2, world=3, cost=cost)
    assert [p.micro_batch for p in planned] == [1, 32]
    assert all(p.micro_batch * p.cost.tokens <= 512 for p in planned)
    assert len({p.micro_batch * p.cost.flops for p in planned}) == 1
    assert sum(p.samples for p in planned) == 100


def test_the_plan_is_a_table_of_the_buckets_of_each_stage():
    course = stages({"until": 10, "buckets": [SMALL]}, {"buckets": [LARGE]})
    order = order_of(course, [ALONE] * 2, [Fraction(1)], None)
    lines = format_plan(plan(course, order, 1, 2, cost)).splitlines()
    assert lines[1].split() == ["0", "1", "x", "16", "x", "16", "100", "4", "2", "25.0", "32", "3.07e-09", "100%"]
    assert lines[2].split() == ["10", "8", "x", "32", "x", "32", "100", "6", "3", "16.7", "768", "1.47e-07", "100%"]
    assert "time" not in format_plan(plan(course, order, 1, 2))


MISTAKES = {
    "not rising": ([{"until": 9, "buckets": [SMALL]}, {"until": 9, "buckets": [SMALL]}, {"buckets": [SMALL]}],
                   "data.stages[1].until: found 9, expected a step after 9; only the last has null"),
    "an end in the middle": ([{"buckets": [SMALL]}, {"buckets": [SMALL]}],
                             "data.stages[0].until: found None, expected a step after 0"),
    "no end": ([{"until": 9, "buckets": [SMALL]}], "data.stages[0].until: found 9, expected null, as it is the last"),
    "no bucket": ([{"until": 9, "buckets": [SMALL]}, {"buckets": []}],
                  "data.stages[1].buckets: found no bucket, expected at least one"),
    "key": ([{"until": 9, "bucket": [SMALL]}], "data.stages[0].bucket: found no such key, expected some of until"),
    "key of a bucket": ([{"buckets": [{**SMALL, "hight": 3}]}], "data.buckets[0].hight: found no such key"),
    "shape": ([{"buckets": [{"frames": 1, "height": 3}]}], "data.buckets[0]: found frames, height, expected width too"),
    "twice": ([{"buckets": [SMALL, {**SMALL, "global_batch": 8}]}], "data.buckets[1]: found 1 x 16 x 16 a second time"),
    "weights": ([{"buckets": [SMALL], "weights": [1, 2]}], "data.weights: found [1, 2], expected 1 number,"),
    "no weight": ([{"buckets": [SMALL], "weights": [0]}], "data.weights: found [0], expected 1 number,"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place(mistake):
    wrong, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        stages(*wrong)
    assert "\n" not in str(error.value)


def test_a_bucket_that_no_sample_falls_into_is_named():
    course = stages({"until": 10, "buckets": [SMALL]}, {"buckets": [LARGE, SMALL]})
    with pytest.raises(ValueError, match="bucket 8 x 32 x 32: found no sample that falls into it"):
        order_of(course, [COUNTS, (ALONE[0], np.array([2]))], [Fraction(1)], None)


@given(st.integers(1, 64), st.integers(1, 64), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1))
def test_every_batch_is_a_multiple_of_the_micro_batches_and_fits(micro_batches, room, shapes):
    buckets = [Bucket(frames, 16 * side, 16) for frames, side in shapes]
    budget = Budget(micro_batches, room + max(cost(bucket).tokens for bucket in buckets), cost)
    for bucket, size in zip(buckets, budget.sizes(buckets), strict=True):
        assert size % micro_batches == 0
        assert 0 < size // micro_batches * cost(bucket).tokens <= budget.tokens
