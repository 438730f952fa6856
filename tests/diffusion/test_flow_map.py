"""The flow map against a Gaussian world, where the exact map between any two levels is known in closed form.

Data N(m, s^2) at each pixel: the probability flow keeps the distance of z from its mean in units of its spread, so the
mean velocity of a step between any two levels is a difference of two known points (test_sampler.py has the same world).
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.guidance import classifier_free, denoise_function
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow, per_frame
from videodiff.diffusion.prediction import KINDS, convert
from videodiff.diffusion.sampler import euler, flow_map, generate, schedule

each_path = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=lambda path: type(path).__name__)
SHAPE = (6, 2, 5, 2, 2)


def randn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN, SPREAD = randn(1), 0.3 + randn(2).abs()


def flow(path: Path, z: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return where the probability flow brings z from the levels `start` to the levels `end`."""

    def spread(tau: Tensor) -> Tensor:
        return ((per_frame(path.alpha(tau)) * SPREAD[: len(z)]) ** 2 + per_frame(path.sigma(tau)) ** 2).sqrt()

    off = (z - per_frame(path.alpha(start)) * MEAN[: len(z)]) / spread(start)
    return per_frame(path.alpha(end)) * MEAN[: len(z)] + off * spread(end)


class Exact:
    """The exact mean velocity of any step as a denoiser whose output is v; clips that it is given must be whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        rho = tau if rho is None else rho
        mean, spread = (value if place is None else value[place] for value in (MEAN, SPREAD))

        def wide(level: Tensor) -> Tensor:
            return ((per_frame(self.path.alpha(level)) * spread) ** 2 + per_frame(self.path.sigma(level)) ** 2).sqrt()

        off = (z - per_frame(self.path.alpha(tau)) * mean) / wide(tau)
        there = per_frame(self.path.alpha(rho)) * mean + off * wide(rho)
        d_alpha, d_sigma = (per_frame(slope) for slope in self.path.slopes(tau))
        alpha, sigma = per_frame(self.path.alpha(tau)), per_frame(self.path.sigma(tau))
        v = d_alpha * mean + off * (alpha * d_alpha * spread**2 + sigma * d_sigma) / wide(tau)
        step = per_frame(tau - rho)
        return torch.where(step > 0, (z - there) / torch.where(step > 0, step, 1.0), v)


def uneven() -> tuple[Tensor, Tensor]:
    """Return levels and where their steps end, different in every frame; one frame is known, one waits, one stands."""
    generator = torch.Generator().manual_seed(4)
    tau = 0.2 + 0.7 * torch.rand(SHAPE[0], SHAPE[2], generator=generator, dtype=torch.float64)
    rho = tau * torch.rand(SHAPE[0], SHAPE[2], generator=generator, dtype=torch.float64)
    tau[:, 0] = rho[:, 0] = 0
    tau[0, 1] = rho[0, 1] = 1
    rho[1] = tau[1]
    tau[2, 1:], rho[2, 1:] = 1, 0
    tau[3, 1:] = 1
    return tau, rho


def at(path: Path, tau: Tensor) -> Tensor:
    """Return z as the world has it at these levels."""
    return path.mix(MEAN + SPREAD * randn(5), randn(6), tau)


def between(tau: Tensor, rho: Tensor, part: float) -> Tensor:
    """Return the levels after a part of each step."""
    return tau + part * (rho - tau)


@each_path
def test_the_exact_mean_velocity_has_no_error_up_to_the_square_of_the_difference(path: Path) -> None:
    tau, rho = uneven()
    place, errors, moving = torch.arange(SHAPE[0]), [], (tau > rho).any(1)
    for part in (0.04, 0.02, 0.01):
        z, exact, sigma = at(path, tau), Exact(path), between(tau, rho, part)
        told = FlowMap(path, NoiseLevels()).mean_velocity(exact, z, (tau, sigma, rho), {"place": place})
        # The difference of both sides, divided by what it is a difference over.
        errors.append((exact(z, tau, rho) - told)[moving][:, :, 1:].square().mean().sqrt() / part)
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    # On straight lines a Gaussian's error is of third order.
    assert min(orders) > 1.8
    assert float(errors[-1]) < 1e-3


@each_path
def test_the_way_to_the_end_of_a_step_is_exact_up_to_the_square_of_its_pieces(path: Path) -> None:
    tau, rho = uneven()
    place, z, moving, errors = torch.arange(SHAPE[0]), at(path, tau), (tau > rho).any(1), []
    told_of_steps = []

    def only_slopes(z: Tensor, tau: Tensor, rho: Tensor, place: Tensor) -> Tensor:
        told_of_steps.append(bool((tau > rho).any()))
        return Exact(path)(z, tau, tau, place)

    for pieces in (8, 16, 32):
        objective = FlowMap(path, NoiseLevels(), difference=1.0, pieces=pieces)
        levels = [between(tau, rho, i / pieces) for i in range(pieces + 1)]
        told = objective.mean_velocity(only_slopes, z, [*levels, rho], {"place": place})
        errors.append((Exact(path)(z, tau, rho, place) - told)[moving][:, :, 1:].abs().max())
    assert len(told_of_steps) == 2 * (8 + 16 + 32)
    assert not any(told_of_steps), "two passes a piece, none of which asks the map"
    assert min(math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)) > 1.7
    assert float(errors[-1]) < 2e-3


def test_a_frame_that_waits_does_not_thin_out_the_error_of_those_that_move() -> None:
    path, place = RectifiedFlow(), torch.arange(SHAPE[0])
    tau = torch.ones(SHAPE[0], SHAPE[2], dtype=torch.float64)
    rho = torch.cat([torch.zeros_like(tau[:, :1]), tau[:, 1:]], 1)

    def off(z: Tensor, tau: Tensor, rho: Tensor, place: Tensor) -> Tensor:
        return Exact(path)(z, tau, rho, place) + per_frame(tau > rho)

    objective = FlowMap(path, NoiseLevels(), difference=1.0, pieces=16)
    levels = [between(tau, rho, i / 16) for i in range(17)]
    x, eps = MEAN + SPREAD * randn(5), randn(6)
    loss = objective.map_error(off, x, eps, [*levels, rho], {"place": place})
    torch.testing.assert_close(loss, torch.ones_like(loss), rtol=0.02, atol=0)


@each_path
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_exact_mean_velocity_is_zero_in_every_form(path: Path, kind: str) -> None:
    tau, rho = uneven()
    tau = tau.clamp(0, 0.95)
    rho = torch.minimum(rho, tau)
    exact, place = Exact(path), torch.arange(SHAPE[0])

    def denoiser(z: Tensor, tau: Tensor, rho: Tensor, place: Tensor) -> Tensor:
        return getattr(convert(exact(z, tau, rho, place), z, tau, path, "v"), kind)

    x, eps = MEAN + SPREAD * randn(5), randn(6)
    objective = FlowMap(path, NoiseLevels(), prediction=kind, loss="v", floor=0.01)
    levels = (tau, between(tau, rho, 0.02), rho)
    loss = objective.map_error(denoiser, x, eps, levels, {"place": place})
    moving = (tau > rho).any(1)
    assert float(loss[moving].max()) < 1e-6
    # A clip that stands still is measured against its own data, as ever.
    plain = Objective(path, NoiseLevels(), prediction=kind, loss="v", floor=0.01)
    told = partial(denoiser, rho=tau)
    torch.testing.assert_close(loss[~moving], plain.error(told, x, eps, tau, {"place": place})[~moving])
    levels = (tau, between(tau, rho, 0.25), rho)
    wrong = objective.map_error(
        lambda z, tau, rho, place: denoiser(z, tau, tau, place), x, eps, levels, {"place": place}
    )
    right = objective.map_error(denoiser, x, eps, levels, {"place": place})
    assert (wrong > 20 * right)[moving].all(), "a network that only knows the velocity has an error"


def test_errors_shrink_from_one_look_to_the_next() -> None:
    # What the network is wrong by at the lower point reaches the upper one by its part of the step, and no more.
    path, (tau, rho) = RectifiedFlow(), uneven()
    place, sigma = torch.arange(SHAPE[0]), between(tau, rho, 0.25)
    exact = Exact(path)

    def off(z: Tensor, tau: Tensor, rho: Tensor, place: Tensor) -> Tensor:
        return exact(z, tau, rho, place) + per_frame(tau > rho) * torch.cos(2000 * per_frame(tau))

    told, right = (
        FlowMap(path, NoiseLevels()).mean_velocity(one, at(path, tau), (tau, sigma, rho), {"place": place})
        for one in (off, exact)
    )
    assert float((told - right).abs().max()) <= 0.75 + 1e-9


@each_path
def test_one_step_of_the_exact_map_lands_exactly(path: Path) -> None:
    tau, rho = uneven()
    z, exact = at(path, tau), Exact(path)
    denoise = denoise_function(exact, {}, path, "v")
    made = flow_map(denoise, z, torch.stack([tau, rho]), path)
    torch.testing.assert_close(made, flow(path, z, tau, rho), rtol=0, atol=1e-9)


@each_path
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_number_of_steps_composes_to_the_same_clip(path: Path, steps: int) -> None:
    known = torch.tensor([[True, False, False, False, False]]).expand(SHAPE[0], -1)
    denoise = denoise_function(Exact(path), {}, path, "v")
    clip, noise = MEAN + SPREAD * randn(7), randn(8)
    made = generate(flow_map, denoise, path, noise, clip, schedule(steps, known, shift=3.0).double())
    torch.testing.assert_close(made[:, :, 0], clip[:, :, 0], rtol=0, atol=0)
    start = schedule(1, known)[0].double()
    wanted = flow(path, noise, start, torch.zeros_like(start))
    torch.testing.assert_close(made[:, :, 1:], wanted[:, :, 1:], rtol=0, atol=1e-8)


def test_guidance_tells_both_networks_where_the_step_goes() -> None:
    told = []

    def network(z: Tensor, tau: Tensor, rho: Tensor) -> Tensor:
        told.append(rho)
        return z

    denoise = denoise_function(network, {}, RectifiedFlow(), "x")
    taus = schedule(2, torch.zeros(SHAPE[0], SHAPE[2], dtype=torch.bool)).double()
    flow_map(classifier_free(denoise, denoise, 2.0), randn(1), taus, RectifiedFlow())
    assert [float(rho[0, 0]) for rho in told] == [0.5, 0.5, 0.0, 0.0]


def small(two_levels: bool = True, seed: int = 0) -> SpaceTimeTransformer:
    """Return a small network of float64 whose every weight has a part in its output."""
    torch.manual_seed(seed)
    network = SpaceTimeTransformer(3, (1, 2, 2), 16, 2, 2, text_width=4, gate=0.3, two_levels=two_levels).double()
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return network


def inputs(n: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    condition = {
        "text": torch.randn(n, 3, 4, generator=generator).double(),
        "text_mask": torch.ones(n, 3, dtype=torch.bool),
        "fps": torch.full((n,), 5.0).double(),
    }
    return torch.randn(n, 3, 5, 4, 4, generator=generator).double(), condition


def test_a_new_network_with_two_levels_gives_what_the_network_with_one_gives() -> None:
    one = small(two_levels=False)
    torch.manual_seed(1)
    two = SpaceTimeTransformer(3, (1, 2, 2), 16, 2, 2, text_width=4, gate=0.3, two_levels=True).double()
    left = two.load_state_dict(one.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {name.split(".")[0] for name in left.missing_keys} == {"embed_step"}
    z, condition = inputs(2)
    tau = torch.rand(2, 5).double()
    wanted = one(z, tau, **condition)
    assert torch.equal(two(z, tau, **condition), wanted)
    assert torch.equal(two(z, tau, rho=tau * 0.3, **condition), wanted)
    with pytest.raises(ValueError, match=r"model\.two_levels: found false, expected true"):
        one(z, tau, rho=tau, **condition)


POLICIES = {"shared": 1.0, "prefix": 1.0, "ends": 1.0, "independent": 1.0, "lead": 1.0}


def test_steps_end_at_or_below_where_they_begin_and_as_often_as_asked() -> None:
    n, levels = 2000, NoiseLevels(POLICIES, base_shift=3.0, base_tokens=20, pure=0.2)
    objective, plain = FlowMap(RectifiedFlow(), levels), Objective(RectifiedFlow(), levels)
    clip, seeds = torch.zeros(1, 5, 2, 2), clip_seeds(0, 0, range(n))
    draws = [objective.draw(clip, seed) for seed in seeds]
    for mine, theirs in zip(draws, (plain.draw(clip, seed) for seed in seeds), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), "the draws of any objective"
    tau, rho = (
        torch.stack([draw[0] for draw in draws]),
        torch.stack([objective.lower(clip, seed, 1.0) for seed in seeds]),
    )
    sigma = torch.stack([objective.lower(clip, seed, 0.5) for seed in seeds])
    assert (rho <= sigma).all()
    assert (sigma <= tau).all()
    assert ((sigma < tau) == (rho < tau)).all()
    assert (rho[tau == 0] == 0).all()
    still = (rho == tau).all(1).float()
    clean = ((rho < tau) & (rho == 0)).any(1).float()
    for share, wanted in ((still, 0.5), (clean, 0.25)):
        assert abs(float(share.mean()) - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / n)
    # Frames that wait for a leader at pure noise stay there while it moves.
    waits = NoiseLevels({"lead": 1.0})
    end = torch.stack([FlowMap(RectifiedFlow(), waits, still=0.1).lower(clip, seed, 1.0) for seed in seeds[:50]])
    assert (end[:, 1:] == 1).all()
    assert (end[:, 0] < 1).all()


def test_it_trains_a_network_and_clips_do_not_depend_on_each_other() -> None:
    network, (x, condition) = small().float(), inputs(4)
    x, condition = x.float(), {k: v.float() if v.is_floating_point() else v for k, v in condition.items()}
    objective, seeds = FlowMap(RectifiedFlow(), NoiseLevels(POLICIES), prediction="x"), clip_seeds(3, 0, range(4))
    together = objective(network, x, condition, {}, seeds)
    alone = [
        objective(network, x[i : i + 1], {k: v[i : i + 1] for k, v in condition.items()}, {}, seeds[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=2e-3, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = objective(network, x, condition, {}, seeds)
    torch.testing.assert_close(coarse, together, rtol=0.2, atol=0.01)
    together.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_batch_without_a_step_costs_the_same_passes_and_is_the_plain_loss() -> None:
    passes = []

    def denoiser(z: Tensor, tau: Tensor, rho: Tensor | None = None) -> Tensor:
        passes.append(len(z))
        return torch.tanh(z)

    objective = FlowMap(RectifiedFlow(), NoiseLevels(), still=1.0, clean=0.0)
    x = randn(1)
    loss, seeds = objective(denoiser, x, {}, {}, clip_seeds(0, 0, range(SHAPE[0]))), clip_seeds(0, 0, range(SHAPE[0]))
    assert passes == [1, 1, 1, SHAPE[0]]
    torch.testing.assert_close(loss, Objective(RectifiedFlow(), NoiseLevels())(denoiser, x, {}, {}, seeds))


@pytest.mark.parametrize("shares", [{"still": 0.8, "clean": 0.4}, {"still": 0.0}])
def test_shares_that_leave_no_room_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"objective\.still: found 0\.[08] beside clean = 0\.(4|25)"):
        FlowMap(RectifiedFlow(), NoiseLevels(), **shares)


def test_euler_is_the_map_that_is_told_of_no_step() -> None:
    network, (z, condition) = small(two_levels=False), inputs(2)
    denoise = denoise_function(network, condition, RectifiedFlow(), "x")
    taus = schedule(3, torch.zeros(2, 5, dtype=torch.bool)).double()
    with pytest.raises(ValueError, match=r"model\.two_levels"):
        flow_map(denoise, z, taus, RectifiedFlow())
    two = small()
    both = denoise_function(two, condition, RectifiedFlow(), "x")
    made = flow_map(lambda z, tau, rho: both(z, tau), z, taus, RectifiedFlow())
    torch.testing.assert_close(made, euler(both, z, taus, RectifiedFlow()))
