"""What a process sends: the closed forms of rings, and the ways between them."""

from __future__ import annotations

import pytest

from videodiff.planning.forecast.memory import Setting
from videodiff.planning.forecast.trace import Weights
from videodiff.planning.forecast.traffic import of_state, of_tokens, ring, switches

P, BLOCKS = 1_000_000, 4
WEIGHTS = Weights(P, 900_000, 100_000)


@pytest.mark.parametrize(
    ("strategy", "accumulate", "wanted"),
    [
        # Sums of gradients, twice 3/4, and the new weights.
        ("ddp", 1, 2 * 3e6),
        ("ddp", 4, 2 * 3e6),
        ("zero1", 4, 3 * 3e6),
        ("zero2", 4, (2 * 4 + 1) * 3e6),
        # Weights for both passes of each micro-batch, and the parts of its gradients; a small network stays whole from
        # one pass to the other.
        ("fsdp2", 2, 2 * 3 * 3e6),
        ("zero3", 2, 2 * 2 * 3e6),
    ],
)
def test_a_strategy_sends_what_its_collectives_need(strategy: str, accumulate: int, wanted: float) -> None:
    sent = of_state(Setting(strategy, 4, accumulate=accumulate), WEIGHTS, BLOCKS)
    assert sent.gradients + sent.weights == wanted


def test_more_passes_gather_weights_that_are_split_once_more_each() -> None:
    plain, more = (of_state(Setting(s, 4), WEIGHTS, BLOCKS, 2.0) for s in ("zero2", "fsdp2"))
    assert plain == of_state(Setting("zero2", 4), WEIGHTS, BLOCKS)
    assert more.weights == 2 * of_state(Setting("fsdp2", 4), WEIGHTS, BLOCKS).weights


def test_frozen_weights_are_gathered_too() -> None:
    frozen = WEIGHTS._replace(frozen=P // 2)
    # A small network stays whole under ZeRO 3 from one pass to the other.
    for strategy, times in (("fsdp2", 2), ("zero3", 1)):
        assert of_state(Setting(strategy, 4), frozen, BLOCKS).weights == times * 1.5 * 3e6


def test_zero_3_gathers_again_what_is_used_again_much_later() -> None:
    large = Weights(10**9, 9 * 10**8, 10**7, small=10**6)
    split = ring(4 * (10**9 - 10**6), 4)
    for reuse, twice in ((0, 1.0), (10**9, 499 / 999), (2 * 10**9, 0.0)):
        found = of_state(Setting("zero3", 4, reuse=reuse), large, BLOCKS).weights
        assert found == pytest.approx(ring(4 * 10**6, 4) + (1 + twice) * split)


@pytest.mark.parametrize(
    ("strategy", "node", "wanted"),
    [
        # Of the steps of all matrices each process of a node sends its part to each of the others.
        ("ddp", 4, 3 / 4),
        ("ddp", 2, 1 / 2),
        ("ddp", 1, 0),
        # The rows of a quarter go to three others that iterate their matrices, and come back.
        ("fsdp2", 4, 2 * 3 / 16),
        ("fsdp2", 2, 2 * 3 / 16),
        ("zero2", 4, 0),
    ],
)
def test_processes_that_share_muons_iteration_send_its_steps(strategy: str, node: int, wanted: float) -> None:
    large = WEIGHTS._replace(orthogonal=10**9)
    adamw, muon = (of_state(Setting(strategy, 4, muon=muon, node=node), large, BLOCKS) for muon in (False, True))
    assert adamw.updates == 0
    assert muon.updates == wanted * 4 * WEIGHTS.matrices
    assert muon._replace(updates=0.0, collectives=adamw.collectives) == adamw
    assert muon.collectives - adamw.collectives == (wanted > 0) * (2 if strategy == "fsdp2" else 1)


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        # Gradients and momenta are gathered everywhere: three quarters of twice the matrices.
        ("zero2_offload", 2 * 3 / 4),
        ("zero3_offload", 2 * 3 / 4),
        # Steps and momenta come back, each as long as the longest of a round of four.
        ("zero3", 2 * 3 / 4 * (1 + 25 / 16)),
    ],
)
def test_zero_gathers_gradients_and_momenta_for_muon(strategy: str, wanted: float) -> None:
    large = WEIGHTS._replace(orthogonal=10**9)
    adamw, muon = (of_state(Setting(strategy, 4, muon=muon), large, BLOCKS) for muon in (False, True))
    assert muon.updates == pytest.approx(wanted * 4 * WEIGHTS.matrices)
    # Whole gradients are summed, not parts of them.
    assert muon.gradients == 2 * 3e6 == (2 if strategy.startswith("zero3") else 1) * adamw.gradients


def test_little_work_of_muon_is_not_shared_where_each_has_everything() -> None:
    # Two processes save half of it.
    for flops, wanted in ((2 * 10**8 - 2, 1), (2 * 10**8, 2)):
        assert Setting("ddp", 2, muon=True, node=2).sharing(flops) == wanted
        assert Setting("fsdp2", 2, muon=True, node=2).sharing(flops) == 2


def test_one_process_sends_nothing() -> None:
    assert of_state(Setting("single", 1), WEIGHTS, BLOCKS).gradients == 0
    assert of_tokens(("space", "time"), 100, 64, 12, 1, 4).tokens == 0
    assert ring(8.0, 1) == 0


def test_the_shared_axis_changes_where_the_kind_of_block_does() -> None:
    assert switches(("space", "time", "space", "time")) == 3
    assert switches(("time", "time", "space")) == 2
    # A block over both takes the tokens as they lie.
    assert switches(("space", "spacetime", "time", "spacetime")) == 1
