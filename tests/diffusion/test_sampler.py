"""Samplers against a Gaussian world, where the best denoiser and the flow from noise to data are known exactly.

Data N(m, s^2) at each pixel makes z ~ N(alpha m, alpha^2 s^2 + sigma^2). The best denoiser is the mean of x given z,
and the probability flow keeps z's distance from its mean in units of its spread (Karras et al. 2022, arXiv 2206.00364,
appendix B.1, for a single Gaussian).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from videodiff.diffusion.guidance import denoise_function
from videodiff.diffusion.levels import shift_levels
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow, per_frame
from videodiff.diffusion.prediction import convert
from videodiff.diffusion.sampler import Denoise, Sampler, ddim, dpm_solver_2m, euler, generate, heun, schedule

ORDER = {euler: 1, heun: 2, ddim: 1, dpm_solver_2m: 2}
each_path = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=lambda path: type(path).__name__)
each_sampler = pytest.mark.parametrize("sampler", ORDER, ids=lambda sampler: sampler.__name__)
SHAPE = (3, 2, 5, 2, 2)


def randn(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


MEAN, SPREAD = randn(1), 0.3 + randn(2).abs()


def spread(path: Path, tau: Tensor) -> Tensor:
    """Return the standard deviation of z at each pixel."""
    return ((per_frame(path.alpha(tau)) * SPREAD) ** 2 + per_frame(path.sigma(tau)) ** 2).sqrt()


def best(path: Path) -> Denoise:
    """Return the mean of x given z: no denoiser has a smaller error."""

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        alpha = per_frame(path.alpha(tau))
        return MEAN + alpha * SPREAD**2 / spread(path, tau) ** 2 * (z - alpha * MEAN)

    return denoise


def flow(path: Path, z: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return where the probability flow brings z from the levels `start` to the levels `end`."""
    off = (z - per_frame(path.alpha(start)) * MEAN) / spread(path, start)
    return per_frame(path.alpha(end)) * MEAN + off * spread(path, end)


def levels(steps: int, high: float, low: float) -> Tensor:
    """Return evenly spaced levels for all frames."""
    taus = torch.linspace(high, low, steps + 1, dtype=torch.float64)
    return taus[:, None, None].expand(-1, SHAPE[0], SHAPE[2])


def error(sampler: Sampler, path: Path, taus: Tensor) -> float:
    """Return the largest distance of a sample from the exact flow."""
    z = randn(3)
    return float((sampler(best(path), z, taus, path) - flow(path, z, taus[0], taus[-1])).abs().max())


@each_path
@each_sampler
def test_halving_the_steps_divides_the_error_by_the_nominal_order(sampler: Sampler, path: Path) -> None:
    # Measured on [0.1, 0.9]: at both ends a multistep solver's variable, log(alpha / sigma), is infinite, and the two
    # steps there are first order (measured on [0, 1] it shows an order of 1.6 to 1.8 at 256 steps).
    errors = [error(sampler, path, levels(steps, 0.9, 0.1)) for steps in (64, 128, 256)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([ORDER[sampler]] * 2, abs=0.1)


@each_path
@pytest.mark.parametrize("sampler", [euler, heun, ddim], ids=lambda sampler: sampler.__name__)
def test_one_step_solvers_keep_their_order_from_pure_noise_to_a_clean_clip(sampler: Sampler, path: Path) -> None:
    errors = [error(sampler, path, levels(steps, 1.0, 0.0)) for steps in (64, 128, 256)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([ORDER[sampler]] * 2, abs=0.1)


@each_path
@each_sampler
def test_samples_reach_the_exact_answer_from_pure_noise_to_a_clean_clip(sampler: Sampler, path: Path) -> None:
    # Data of spread 1: 512 steps of a first-order solver err by about a hundredth, of second order by far less.
    assert error(sampler, path, levels(512, 1.0, 0.0)) < {1: 2e-2, 2: 5e-4}[ORDER[sampler]]


@each_path
@each_sampler
def test_a_frame_that_waits_for_others_is_sampled_as_if_alone(sampler: Sampler, path: Path) -> None:
    # A ramp as in rolling generation: each frame stays noise, falls in 12 steps of its own, stays clean.
    fall, stagger = 12, 3
    begin = stagger * torch.arange(SHAPE[2], dtype=torch.float64)
    clock = torch.arange(fall + begin[-1] + 1, dtype=torch.float64)[:, None, None]
    taus = ((begin + fall - clock) / fall).clamp(0, 1).expand(-1, SHAPE[0], -1)
    ramp, alone = (sampler(best(path), randn(3), t, path) for t in (taus, levels(fall, 1.0, 0.0)))
    torch.testing.assert_close(ramp, alone, rtol=0, atol=1e-9)


@each_path
def test_dpm_solver_takes_the_steps_of_its_paper_where_they_are_uneven(path: Path) -> None:
    # Lu et al. 2022, arXiv 2211.01095, algorithm 2, with lambda = log(alpha / sigma) and answers that do not follow z.
    taus = torch.tensor([0.9, 0.7, 0.6, 0.2], dtype=torch.float64)
    alpha, sigma = path.alpha(taus).tolist(), path.sigma(taus).tolist()
    snr = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    answers, expected = [0.5, -0.3, 0.8], 1.0
    for i, x in enumerate(answers):
        h, guess = snr[i + 1] - snr[i], x
        if i > 0:
            r = (snr[i] - snr[i - 1]) / h
            guess = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * answers[i - 1]
        expected = sigma[i + 1] / sigma[i] * expected - alpha[i + 1] * (math.exp(-h) - 1) * guess
    told = iter(answers)
    z = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    made = dpm_solver_2m(lambda z, tau: torch.full_like(z, next(told)), z, taus[:, None, None], path)
    assert float(made) == pytest.approx(expected, rel=1e-12)


def test_euler_and_ddim_are_the_same_on_straight_lines() -> None:
    path, taus = RectifiedFlow(), levels(7, 1.0, 0.0)
    made = [sampler(best(path), randn(3), taus, path) for sampler in (euler, ddim)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-12)


@each_path
@each_sampler
def test_one_step_from_pure_noise_gives_the_expected_clip(sampler: Sampler, path: Path) -> None:
    made = sampler(best(path), randn(3), levels(1, 1.0, 0.0), path)
    # Euler on the cosine path steps along the tangent: x cos' + eps sin' at tau = 1 is - pi / 2 x.
    tangent = randn(3) + math.pi / 2 * MEAN
    curved = isinstance(path, Cosine) and sampler in (euler, heun)
    torch.testing.assert_close(made, tangent if curved else MEAN, rtol=0, atol=1e-12)


@each_path
@each_sampler
def test_what_a_network_errs_in_predicted_noise_stays_small_on_the_way(sampler: Sampler, path: Path) -> None:
    # In pure noise alpha is 0: the clip that follows from an error of eps there would be infinite.
    def made(wrong: float) -> Tensor:
        def network(z: Tensor, tau: Tensor) -> Tensor:
            return convert(best(path)(z, tau), z, tau, path, "x").eps + wrong * randn(4)

        return sampler(denoise_function(network, {}, path, "eps"), randn(3), levels(8, 1.0, 0.0), path)

    grown = (made(0.05) - made(0.0)).square().mean().sqrt() / 0.05
    assert grown < 8, "no more than its own size in each of the eight steps"


@each_path
@each_sampler
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_schedule_give_no_nan(sampler: Sampler, path: Path, steps: int, dtype: torch.dtype) -> None:
    taus = levels(steps, 1.0, 0.0).to(dtype)
    made = sampler(lambda z, tau: 0.5 * z, randn(3, dtype), taus, path)
    assert made.dtype == dtype
    assert made.isfinite().all()


MASKS = {
    "text to video": [0, 0, 0, 0, 0],
    "image to video": [1, 0, 0, 0, 0],
    "continuation": [1, 1, 1, 0, 0],
    "interpolation": [1, 0, 0, 0, 1],
    "all known": [1, 1, 1, 1, 1],
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@each_path
@each_sampler
@each_mask
def test_known_frames_come_back_to_the_bit(sampler: Sampler, path: Path, mask: list[int]) -> None:
    known = torch.tensor(mask, dtype=torch.bool).expand(SHAPE[0], -1)
    noise, seen = randn(3, torch.float32), []
    # Where no frame is known the clip may be anything.
    clip = torch.where(per_frame(known), randn(4, torch.float32), torch.nan)

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        seen.append((z, tau))
        return torch.tanh(z.mean(2, keepdim=True) - z)

    made = generate(sampler, denoise, path, noise, clip, schedule(4, known, shift=3.0))
    given = per_frame(known).expand(SHAPE)
    assert torch.equal(made[given], clip[given])
    assert not torch.isclose(made, noise)[~given].any(), "the other frames are made"
    assert made.isfinite().all()
    for z, tau in seen:
        assert torch.equal(z[given], clip[given]), "the network sees the known frames as they are"
        assert torch.equal(tau == 0, known), "and is told that they are clean"


@each_path
@each_sampler
def test_clips_of_one_batch_may_know_different_frames(sampler: Sampler, path: Path) -> None:
    known = torch.tensor([MASKS["text to video"], MASKS["continuation"], MASKS["interpolation"]], dtype=torch.bool)
    noise, clip = randn(3), randn(4)

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        return torch.tanh(z.mean(2, keepdim=True) - z)

    together = generate(sampler, denoise, path, noise, clip, schedule(5, known))
    alone = [
        generate(sampler, denoise, path, noise[i : i + 1], clip[i : i + 1], schedule(5, known[i : i + 1]))
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@each_sampler
def test_no_network_call_is_wasted(sampler: Sampler) -> None:
    calls, steps, path = [], 6, RectifiedFlow()

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        calls.append(tau)
        return best(path)(z, tau)

    sampler(denoise, randn(3), levels(steps, 1.0, 0.0), path)
    # Heun looks at both ends of a step, but of the last one only at its start.
    assert len(calls) == (2 * steps - 1 if sampler is heun else steps)


def test_a_schedule_falls_evenly_from_noise_to_clean_in_unknown_frames() -> None:
    taus = schedule(4, torch.tensor([[True, False]]))
    assert taus[:, 0, 0].tolist() == [0.0] * 5
    assert taus[:, 0, 1].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("shift", [0.1, 0.3, 1.0, 3.0, 7.0])
def test_a_shifted_schedule_still_begins_at_noise_and_ends_clean(shift: float) -> None:
    taus = schedule(4, torch.tensor([[False]]), shift).flatten()
    assert (float(taus[0]), float(taus[-1])) == (1, 0)
    assert (taus.diff() < 0).all()
    torch.testing.assert_close(taus, shift_levels(torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]), shift))


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_a_schedule_begins_where_it_is_told_and_falls_evenly_before_the_shift(shift: float) -> None:
    begin = torch.tensor([[0.6, 0.9]], dtype=torch.float64)
    taus = schedule(4, torch.zeros(1, 2, dtype=torch.bool), shift, begin=begin)
    torch.testing.assert_close(taus[0], begin, check_dtype=False)
    plain = shift_levels(taus, 1 / shift)
    torch.testing.assert_close(plain, plain[:1] * torch.tensor([1, 0.75, 0.5, 0.25, 0]).view(-1, 1, 1).double())


def test_leading_frames_run_down_alone_and_the_others_follow() -> None:
    taus = schedule(2, torch.zeros(1, 3, dtype=torch.bool), lead=1)[:, 0]
    assert taus[:, 0].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert taus[:, 1].tolist() == taus[:, 2].tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(("lead", "known"), [(0, [0, 0, 0]), (3, [0, 0, 0]), (5, [0, 0, 0]), (1, [0, 0, 1])])
def test_where_no_frame_waits_for_another_leading_costs_nothing(lead: int, known: list[int]) -> None:
    mask = torch.tensor([known], dtype=torch.bool)
    assert torch.equal(schedule(4, mask, lead=lead), schedule(4, mask))


@each_sampler
def test_clips_with_and_without_a_leader_share_a_batch(sampler: Sampler) -> None:
    known = torch.tensor([MASKS["text to video"], MASKS["continuation"], MASKS["interpolation"]], dtype=torch.bool)
    path, noise, clip = RectifiedFlow(), randn(3), randn(4)

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        return torch.tanh(z.mean(2, keepdim=True) - z)

    together = generate(sampler, denoise, path, noise, clip, schedule(5, known, lead=2))
    for i in range(3):
        one = slice(i, i + 1)
        alone = generate(sampler, denoise, path, noise[one], clip[one], schedule(5, known[one], lead=2))
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-12)
