"""What a process sends: the closed forms of rings, and the ways between them."""

from __future__ import annotations

import pytest

from videodiff.planning.forecast.memory import Setting
from videodiff.planning.forecast.traffic import of_state, of_tokens, ring, switches

P, BLOCKS = 1_000_000, 4


@pytest.mark.parametrize(
    ("strategy", "accumulate", "wanted"),
    [
        # Sums of gradients, twice 3/4; or their parts once, and the new weights.
        ("ddp", 1, 2 * 3e6),
        ("ddp", 4, 2 * 3e6),
        ("zero1", 4, 2 * 3e6),
        ("zero2", 4, (4 + 1) * 3e6),
        # Weights for both passes of each micro-batch, and the parts of its gradients.
        ("zero3", 2, 2 * 3 * 3e6),
        ("fsdp2", 1, 3 * 3e6),
    ],
)
def test_a_strategy_sends_what_its_collectives_need(strategy: str, accumulate: int, wanted: float) -> None:
    sent = of_state(Setting(strategy, 4, accumulate=accumulate), P, BLOCKS)
    assert sent.gradients + sent.weights == wanted


def test_more_passes_gather_weights_that_are_split_once_more_each() -> None:
    plain, more = (of_state(Setting(s, 4), P, BLOCKS, 2.0) for s in ("zero2", "zero3"))
    assert plain == of_state(Setting("zero2", 4), P, BLOCKS)
    assert more.weights == 2 * of_state(Setting("zero3", 4), P, BLOCKS).weights


def test_one_process_sends_nothing() -> None:
    assert of_state(Setting("single", 1), P, BLOCKS).gradients == 0
    assert of_tokens(("space", "time"), 100, 64, 12, 1, 4).tokens == 0
    assert ring(8.0, 1) == 0


def test_the_shared_axis_changes_where_the_kind_of_block_does() -> None:
    assert switches(("space", "time", "space", "time")) == 3
    assert switches(("time", "time", "space")) == 2
    # A block over both takes the tokens as they lie.
    assert switches(("space", "spacetime", "time", "spacetime")) == 1
