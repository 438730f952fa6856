"""Noise levels: distributions, the shift, and which frames each policy gives."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from videodiff.diffusion.levels import (
    APART,
    POLICIES,
    NoiseLevels,
    policy,
    shift_levels,
    token_shift,
)
from videodiff.generation.known import mixed

QUICK = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def levels(name: str, t: int, seed: int = 0) -> Tensor:
    """Draw levels of `t` frames by the policy of this name alone."""
    return NoiseLevels({name: 1.0})(t, tokens=1024, generator=generator(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [*POLICIES, "prefix_2", "lead_2"])
def test_draws_do_not_follow_the_type_that_torch_makes_tensors_of(name: str, dtype: torch.dtype) -> None:
    wanted = levels(name, 5)
    torch.set_default_dtype(dtype)
    try:
        found = levels(name, 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


@given(shift=st.floats(0.01, 100.0))
@QUICK
def test_a_shift_leaves_clean_clean_and_noise_noise_to_the_bit(shift: float) -> None:
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(shift_levels(ends, shift), ends)


@given(shift=st.floats(0.01, 100.0), tau=st.floats(0.01, 0.99))
@QUICK
def test_a_shift_moves_the_logit_by_its_logarithm(shift: float, tau: float) -> None:
    shifted = shift_levels(torch.tensor(tau, dtype=torch.float64), shift)
    expected = math.log(tau / (1 - tau)) + math.log(shift)
    assert math.isclose(float(torch.logit(shifted)), expected, abs_tol=1e-9)


def test_four_times_the_tokens_shift_twice_as_far() -> None:
    assert token_shift(1024, base_tokens=1024, base_shift=3.0) == 3.0
    assert token_shift(4096, base_tokens=1024, base_shift=3.0) == 6.0


@given(seed=seeds, tokens=st.integers(1, 10**6))
@QUICK
def test_without_base_tokens_clips_of_all_sizes_have_the_same_levels(seed: int, tokens: int) -> None:
    draw = NoiseLevels({"independent": 1.0}, base_shift=3.0, base_tokens=None)
    assert torch.equal(draw(8, tokens, generator(seed)), draw(8, 1, generator(seed)))
    plain = NoiseLevels({"independent": 1.0})(8, tokens=1024, generator=generator(seed))
    torch.testing.assert_close(draw(8, tokens, generator(seed)), shift_levels(plain, 3.0))


@given(seed=seeds, tokens=st.integers(1, 10**6))
@QUICK
def test_levels_depend_on_the_tokens_of_the_clip(seed: int, tokens: int) -> None:
    draw = NoiseLevels({"independent": 1.0}, base_shift=2.0, base_tokens=1024)
    plain = NoiseLevels({"independent": 1.0})(8, tokens=1024, generator=generator(seed)).double()
    expected = torch.logit(plain) + math.log(2.0 * math.sqrt(tokens / 1024))
    torch.testing.assert_close(draw(8, tokens, generator(seed)).double(), expected.sigmoid(), rtol=1e-4, atol=1e-6)


@given(seed=seeds, t=st.integers(2, 12), data=st.data())
@QUICK
def test_prefix_k_gives_exactly_the_first_k_frames(seed: int, t: int, data: st.DataObject) -> None:
    known = data.draw(st.integers(0, t - 1))
    tau = levels(f"prefix_{known}", t, seed)
    assert not tau[:known].any()
    assert (tau[known:] > 0).all()
    assert tau[known:].unique().numel() == 1


def test_prefix_leaves_at_least_the_last_frame_noisy() -> None:
    assert (levels("prefix_9", 4) > 0).tolist() == [False, False, False, True]


def test_prefix_without_a_number_gives_any_number_of_frames_from_one_to_all_but_one() -> None:
    counts = {int((levels("prefix", 5, seed) == 0).sum()) for seed in range(100)}
    assert counts == {1, 2, 3, 4}


@given(seed=seeds, t=st.integers(3, 12))
@QUICK
def test_ends_gives_the_first_and_the_last_frame(seed: int, t: int) -> None:
    tau = levels("ends", t, seed)
    assert (tau == 0).tolist() == [True, *[False] * (t - 2), True]
    assert tau[1:-1].unique().numel() == 1


@given(seed=seeds, t=st.integers(2, 12))
@QUICK
def test_shared_gives_all_frames_one_level_and_independent_each_its_own(seed: int, t: int) -> None:
    assert levels("shared", t, seed).unique().numel() == 1
    assert levels("independent", t, seed).unique().numel() >= max(2, t - 1)


@given(seed=seeds, t=st.integers(2, 12), data=st.data())
@QUICK
def test_lead_k_draws_a_level_for_the_first_k_frames_and_leaves_the_others_pure_noise(
    seed: int, t: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, t))
    tau = levels(f"lead_{first}", t, seed)
    assert tau[:first].unique().numel() == 1
    assert 0 < tau[0] < 1
    assert (tau[first:] == 1).all()


@pytest.mark.parametrize("name", [*POLICIES, "lead_2", "prefix_0", "prefix_1", "prefix_3"])
@given(seed=seeds)
@QUICK
def test_one_frame_is_a_clip_with_something_to_learn_under_every_policy(name: str, seed: int) -> None:
    tau = levels(name, 1, seed)
    assert tau.shape == (1,)
    assert tau > 0


def test_policies_are_drawn_by_weight() -> None:
    draw, source, n = NoiseLevels({"shared": 1.0, "prefix_1": 3.0}), generator(), 2000
    given_first = sum(float(draw(4, 1024, source)[0]) == 0 for _ in range(n)) / n
    assert abs(given_first - 0.75) < 4 * math.sqrt(0.75 * 0.25 / n)


def test_a_share_of_the_draws_is_pure_noise() -> None:
    n = 4000
    tau = NoiseLevels({"independent": 1.0}, pure=0.2)(n, 1024, generator())
    assert abs(float((tau == 1).float().mean()) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)


def test_logit_normal_has_the_mean_and_the_width_it_is_given() -> None:
    n, mean, std = 20_000, 0.7, 1.5
    draw = NoiseLevels({"independent": 1.0}, mean=mean, std=std)
    logit = torch.logit(draw(n, tokens=1024, generator=generator()).double())
    assert abs(float(logit.mean()) - mean) < 4 * std / math.sqrt(n)
    assert abs(float(logit.std()) - std) < 4 * std / math.sqrt(2 * n)


def test_uniform_levels_have_the_quantiles_of_the_unit_interval() -> None:
    n = 20_000
    tau = NoiseLevels({"independent": 1.0}, distribution="uniform")(n, 1024, generator())
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(tau.quantile(quantiles), quantiles, rtol=0, atol=4 * 0.5 / math.sqrt(n))


def test_the_generator_alone_decides() -> None:
    draw = NoiseLevels(dict.fromkeys(POLICIES, 1.0), pure=0.3)
    assert all(torch.equal(draw(6, 64, generator(s)), draw(6, 64, generator(s))) for s in range(20))


@pytest.mark.parametrize("name", ["middle", "prefix_", "prefix_-1", "prefix_two", "prefix_²", "shared_2", "lead_0"])
def test_an_unknown_policy_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"levels\.policies: found '.*', expected one of shared, prefix, ends"):
        policy(name)


@pytest.mark.parametrize(
    "weights", [{"shared": -1.0, "ends": 2.0}, {"shared": 0.0}, {"shared": math.nan}, {"shared": 1e308, "ends": 1.0}]
)
def test_weights_that_are_no_weights_are_an_error(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"levels\.policies: found the weights .*shared"):
        NoiseLevels(weights)


def test_an_unknown_distribution_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="found 'normal', expected uniform or logit_normal"):
        NoiseLevels(distribution="normal")


@pytest.mark.parametrize("t", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize(
    "name", [*POLICIES, "prefix_0", "prefix_2", "prefix_3", "prefix_9", "lead_2", "lead_3", "lead_9"]
)
def test_frames_with_levels_of_their_own_share_a_patch_where_draws_do(name: str, t: int) -> None:
    assert APART.keys() == POLICIES.keys()
    apart = NoiseLevels({"ends": 0.0} | {name: 1.0}).apart(t)
    drawn = torch.stack([levels(name, t, seed) for seed in range(40)])
    for patch in (patch for patch in range(1, t + 1) if t % patch == 0):
        patches = drawn.unflatten(1, (-1, patch))
        differ = bool((patches != patches[..., :1]).any())
        assert bool(mixed(apart, SimpleNamespace(patch=(patch, 1, 1)))) == differ, patch
