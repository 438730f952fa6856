"""State by strategy, as docs/cluster.md has it, and what a plan does with it."""

from __future__ import annotations

import pytest

from videodiff.planning.forecast.memory import Setting, at_peak, state, step_transient
from videodiff.planning.forecast.trace import Weights

P, N = 1_000_000, 4
WEIGHTS = Weights(P, 900_000, 100_000)


@pytest.mark.parametrize(
    ("strategy", "half", "wanted"),
    [
        ("single", False, 20 * P),
        ("ddp", False, 20 * P),
        ("zero1", False, 4 * P + 20 * P / N),
        ("zero2", False, 4 * P + 20 * P / N),
        ("zero3", False, 24 * P / N),
        ("fsdp2", False, 20 * P / N),
        # Of 16 bits are the weights and their gradients; the copy, the moments and the average are not.
        ("zero2", True, 2 * P + 18 * P / N),
        ("zero3", True, 20 * P / N),
        ("ddp", True, 20 * P),
        ("zero2_offload", False, 4 * P),
        ("zero3_offload", False, 0),
    ],
)
def test_a_process_keeps_what_the_formulas_say(strategy: str, half: bool, wanted: float) -> None:
    kept = state(Setting(strategy, N, half), WEIGHTS)
    assert kept.total - kept.buffers == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("strategy", "half", "more"),
    [
        ("single", False, 4 * P),
        ("ddp", True, 4 * P),
        ("zero2", True, 2 * P),
        ("zero3", True, 2 * P / N),
        ("fsdp2", False, 4 * P / N),
        ("zero3_offload", True, 0),
    ],
)
def test_a_frozen_weight_has_no_gradient_and_no_state(strategy: str, half: bool, more: float) -> None:
    setting = Setting(strategy, N, half)
    bare, frozen = (state(setting, WEIGHTS._replace(frozen=n)) for n in (0, P))
    assert frozen.total - frozen.buffers - bare.total + bare.buffers == pytest.approx(more)


def test_what_leaves_the_device_is_on_the_host() -> None:
    kept = state(Setting("zero2_offload", N), WEIGHTS)
    assert kept.host == pytest.approx(20 * P / N)


def test_muon_has_one_moment_of_a_matrix() -> None:
    adamw, muon = (state(Setting("single", 1, muon=muon), WEIGHTS).optimizer for muon in (False, True))
    assert adamw - muon == 4 * WEIGHTS.matrices


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        # All updates, and for a third of the matrices four tensors as large as they are.
        (Setting("single", 1, muon=True), 1 + 4 / 3),
        (Setting("ddp", 4, muon=True), 1 + 4 / 3),
        # The steps of all matrices, and those that this process sends.
        (Setting("ddp", 4, muon=True, node=4), 1 + 1 / 4),
        # Gradients and momenta of all, which is less than ZeRO gathers at once; for one matrix four tensors.
        (Setting("zero2_offload", 4, muon=True), 2 + 4 / 3 / 9),
        # Rows of updates, whole matrices, rows to send and rows that came: each a quarter of all.
        (Setting("fsdp2", 4, muon=True), 1),
    ],
)
def test_the_step_of_muon_holds_updates_and_what_it_exchanges(setting: Setting, wanted: float) -> None:
    found = step_transient(setting, WEIGHTS._replace(orthogonal=10**9), fused=True)
    assert found == pytest.approx(4 * WEIGHTS.matrices * wanted)


def test_gloo_gathers_the_steps_of_muon_into_a_copy() -> None:
    setting, large = Setting("ddp", 2, muon=True, node=2), WEIGHTS._replace(orthogonal=10**9)
    on_card, on_processor = (step_transient(setting, large, fused) for fused in (True, False))
    assert on_processor - on_card == 4 * WEIGHTS.matrices


def test_ddp_has_its_buckets_twice_for_a_moment_when_little_else_is_there() -> None:
    # Weights, gradients, two moments, the average: and gradients again.
    assert at_peak(Setting("ddp", 2), WEIGHTS, P, 0).total == 24 * P
    assert at_peak(Setting("ddp", 2), WEIGHTS, 10 * P, 0).total == 30 * P
    assert at_peak(Setting("ddp", 1), WEIGHTS, P, 0).total == 21 * P


def test_whole_gradients_stay_where_micro_batches_accumulate() -> None:
    once, twice = (state(Setting("zero1", N, accumulate=a), WEIGHTS).gradients for a in (1, 2))
    assert (once, twice) == (4 * P / N, 4 * P)


def test_the_fullest_moment_is_of_the_passes_or_of_the_optimizer() -> None:
    # Gradients of the step before are there until the backward pass begins.
    assert at_peak(Setting("single", 1), WEIGHTS, 10 * P, 0).total == 20 * P + 10 * P
    assert at_peak(Setting("single", 1), WEIGHTS, 2 * P, 3 * P).total == 20 * P + 3 * P
    # Under ZeRO they come as the activations go: the passes are told with this process's share of them.
    shared = state(Setting("zero2", N), WEIGHTS).total
    assert at_peak(Setting("zero2", N), WEIGHTS, 10 * P, 0).total == shared - 4 * P / N + 10 * P
