"""The flow map against a Gaussian world, where the exact map between any two levels is known in closed form.

Data N(m, s^2) at each pixel: the probability flow keeps the distance of z from its mean in units of its spread, so the
mean velocity of a step between any two levels is a difference of two known points (test_sampler.py has the same world).
"""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.flow_map import FlowMap, frame_error
from videodiff.diffusion.guidance import classifier_free, denoise_function, with_history
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow, per_frame
from videodiff.diffusion.prediction import convert
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


def ways(tau: Tensor, rho: Tensor, pieces: int, own: float = 0.0) -> Tensor:
    """Return the levels of a step, from its start to its end, where the network takes a part `own` of it."""
    return torch.stack([tau, *(between(tau, rho, own + (1 - own) * i / pieces) for i in range(pieces + 1))])


@each_path
def test_the_path_of_the_velocity_ends_where_the_exact_map_does(path: Path) -> None:
    tau, rho = uneven()
    # A first and a last piece at pure noise and at a clean clip are of first order.
    tau, rho = tau.clamp(0, 0.9), torch.minimum(rho.clamp_min(0.2), tau.clamp(0, 0.9))
    place, z, errors, told_of_steps = torch.arange(SHAPE[0]), at(path, tau), [], []

    def only_slopes(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        told_of_steps.append(rho is not None)
        return Exact(path)(z, tau, None, place)

    for pieces in (8, 16, 32):
        objective = FlowMap(path, NoiseLevels(), prediction="v", pieces=pieces, own=0.0)
        there = objective.follow(only_slopes, z, ways(tau, rho, pieces), {"place": place}, {}, z)
        errors.append(float((there - flow(path, z, tau, rho)).abs().max()))
        assert torch.equal(there[1], z[1]), "a clip that takes no step stays"
    assert len(told_of_steps) == 8 + 16 + 32
    assert not any(told_of_steps), "one pass a piece, none of which asks the map"
    assert min(math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)) > 1.7
    assert errors[-1] < 2e-2


@each_path
def test_the_network_takes_the_first_part_of_a_step_itself_and_the_velocity_the_rest(path: Path) -> None:
    tau, rho = uneven()
    tau, rho = tau.clamp(0, 0.9), torch.minimum(rho.clamp_min(0.2), tau.clamp(0, 0.9))
    place, z, told = torch.arange(SHAPE[0]), at(path, tau), []
    middle, levels = between(tau, rho, 0.5), ways(tau, rho, 32, own=0.5)

    def network(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        told.append(rho)
        return Exact(path)(z, tau, rho, place)

    objective = FlowMap(path, NoiseLevels(), prediction="v", pieces=32, spread=0.0)
    there = objective.follow(network, z, levels, {"place": place}, {}, z)
    torch.testing.assert_close(there, flow(path, z, tau, rho), rtol=0, atol=1e-2)
    assert len(told) == objective.forwards == 33
    torch.testing.assert_close(told[0], middle)
    assert all(one is None for one in told[1:])

    def off(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        return Exact(path)(z, tau, rho, place) + (0.0 if rho is None else 0.5)

    # What the network makes of the first half stays in the target: the velocity goes on from there.
    half = flow(path, z, tau, middle) - 0.5 * per_frame(tau - middle)
    there = objective.follow(off, z, levels, {"place": place}, {}, z)
    torch.testing.assert_close(there, flow(path, half, middle, rho), rtol=0, atol=1e-2)


def test_known_frames_guide_the_way_but_not_the_step_of_the_network_itself() -> None:
    path, passes, z, noise, place = RectifiedFlow(), [], randn(3), randn(4), torch.arange(SHAPE[0])
    tau = torch.full((SHAPE[0], SHAPE[2]), 0.8, dtype=torch.float64)
    tau[:3, 1] = 0.0
    levels = torch.stack([tau * part for part in (1.0, 0.75, 0.5)])

    def network(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        passes.append(rho is None)
        # All frames count in each frame.
        return torch.sin(z) + (z + per_frame(tau)).mean(2, keepdim=True) + (0.0 if rho is None else 0.3)

    objective = FlowMap(path, NoiseLevels(), prediction="x", pieces=1, history=1.75, lead=1, spread=0.0)
    there = objective.follow(network, z, levels, {"place": place}, {}, noise)
    assert passes == [False, True, True]
    assert objective.forwards == len(passes)

    denoise = denoise_function(network, {"place": place}, path, "x")
    half = flow_map(denoise, z, levels[:2], path)
    guided = with_history(denoise, path, tau == 0, noise, 1.75)
    torch.testing.assert_close(there, euler(guided, half, levels[1:], path), rtol=0, atol=1e-12)
    assert torch.equal(there[:3, :, 1], z[:3, :, 1]), "known frames stay"
    plain = euler(denoise, half, levels[1:], path)
    assert (there[:3] != plain[:3]).any()
    torch.testing.assert_close(there[3:], plain[3:], rtol=0, atol=1e-12)


def test_a_clip_with_no_more_known_frames_than_lead_is_guided_by_its_caption() -> None:
    path, z, noise, words = RectifiedFlow(), randn(3), randn(4), torch.arange(1.0, 1 + SHAPE[0], dtype=torch.float64)
    tau = torch.full((SHAPE[0], SHAPE[2]), 0.8, dtype=torch.float64)
    tau[0, 0] = tau[1, :2] = 0.0
    levels, null = torch.stack([tau * part for part in (1.0, 1.0, 0.5)]), {"words": torch.zeros(())}

    def network(z: Tensor, tau: Tensor, rho: Tensor | None = None, words: Tensor | None = None) -> Tensor:
        return torch.sin(z) + (z + per_frame(tau)).mean(2, keepdim=True) + words.view(-1, 1, 1, 1, 1)

    objective = FlowMap(path, NoiseLevels(), prediction="x", pieces=1, own=0.0, history=1.7, scale=2.3, lead=1)
    alone = FlowMap(path, NoiseLevels(), pieces=3, own=0.0, scale=2.0, spread=0.0)
    assert (objective.forwards, alone.forwards) == (3, 6), "either guidance takes a second pass, and another noise one"
    assert (objective.own_steps, alone.own_steps) == (1, 0)
    # Lightning sets the type that torch makes tensors of in a training in half precision.
    torch.set_default_dtype(torch.bfloat16)
    try:
        there = objective.follow(network, z, levels, {"words": words}, null, noise)
    finally:
        torch.set_default_dtype(torch.float32)
    told, untold = (denoise_function(network, {"words": of}, path, "x") for of in (words, 0 * words))
    by_caption = euler(classifier_free(told, untold, 2.3), z, levels[1:], path)
    by_history = euler(with_history(told, path, tau == 0, noise, 1.7), z, levels[1:], path)
    assert not torch.allclose(by_caption, by_history)
    for clip, wanted in enumerate([by_caption, by_history, *[by_caption] * (SHAPE[0] - 2)]):
        torch.testing.assert_close(there[clip], wanted[clip], rtol=0, atol=1e-12)


def test_the_error_of_a_frame_is_that_of_its_pixels_of_their_means_around_and_of_its_mean() -> None:
    difference = torch.zeros(2, 1, 3, 5, 5)
    # Every window of 5 x 5 around a pixel of this frame sees its middle: each of these means is a 25th of it.
    difference[0, 0, 0, 2, 2] = 5.0
    # Beside the middle of the frame: the windows of 20 of 25 pixels see both, those of 5 see one of them.
    difference[0, 0, 1, 2, 1], difference[0, 0, 1, 2, 2] = 5.0, -5.0
    wanted = torch.zeros(2, 3)
    wanted[0, 0] = 25 / 25 + 3.0 * 25 / 625 + 20.0 * 25 / 625
    wanted[0, 1] = 2 * 25 / 25 + 3.0 * 25 / 625 * 5 / 25
    torch.testing.assert_close(frame_error(difference, 3.0, 20.0), wanted)


@pytest.mark.parametrize("lead", [0, 1])
def test_ends_from_two_noises_are_held_apart_where_no_more_frames_are_known_than_lead(lead: int) -> None:
    path, place, noises = RectifiedFlow(), torch.arange(SHAPE[0]), []
    tau = torch.full((SHAPE[0], SHAPE[2]), 0.9, dtype=torch.float64)
    tau[0, 0] = tau[1, :2] = 0.0
    rho = torch.cat([0.0 * tau[:, :4], tau[:, 4:]], 1)

    class Noisy:
        """A map whose ends lie as far from the exact one as each element's noise says."""

        def __call__(self, z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
            exact = Exact(path)(z, tau, rho, place)
            if rho is None:
                return exact
            noises.append((z - per_frame(path.alpha(tau)) * x) * per_frame((tau > rho).double()) / 0.9)
            return exact + 0.1 * noises[-1]

    x, condition, seeds = MEAN + SPREAD * randn(5), {"place": place}, clip_seeds(3, 0, range(SHAPE[0]))
    shape = {"pieces": 64, "width": 0.5, "near": 3.0, "whole": 20.0, "lead": lead, "own": 0.0}
    levels, alike = ways(tau, rho, 64), {"caption_dropout": 0.0} | shape

    class Fixed(FlowMap):
        def way(self, clip: Tensor, seed: int) -> Tensor:
            return levels[:, list(seeds).index(seed)]

    def losses(spread: float) -> Tensor:
        noises.clear()
        return Fixed(path, NoiseLevels(), prediction="v", spread=spread, **alike)(Noisy(), x, condition, {}, seeds)

    alone, proper = losses(0.0), losses(0.75)
    second, first = noises
    assert not torch.allclose(first, second), "the second noise is another"
    objective = FlowMap(path, NoiseLevels(), **shape)
    # Both steps begin at other places, so their exact ends differ too.
    exact = [Exact(path)(path.mix(x, eps, tau), tau, rho, place) + 0.1 * eps for eps in noises]
    ends = [convert(v, path.mix(x, e, tau), tau, path, "v").v for v, e in zip(exact, noises, strict=True)]
    apart = objective.distance(*ends)[:, :4]
    moving = (tau > rho)[:, :4]
    apart = (apart * moving).sum(1) / moving.sum(1)
    known = (tau == 0).sum(1)
    wanted = torch.where(known <= lead, alone - 0.75 * apart, alone)
    torch.testing.assert_close(proper, wanted, rtol=1e-6, atol=1e-9)
    assert (known > lead).any()
    assert ((alone - proper)[known <= lead] > 1e-3).all()


def test_a_map_that_cannot_know_its_end_learns_one_of_the_ends_and_not_the_blur_between() -> None:
    # Clips are +1 or -1, and the noise does not tell which. All signs of clip, noise and other noise, equally often.
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=3)), dtype=torch.float64)
    truth, noise, other = (sign.view(-1, 1, 1, 1, 1).expand(-1, 1, 1, 5, 5) for sign in signs.T)
    levels = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1).expand(3, len(signs), 1)

    def slope(size: float, spread: float) -> float:
        """Return the slope of the mean loss of a map that gives `size` with the sign of its noise."""
        scale = torch.tensor(size, dtype=torch.float64, requires_grad=True)
        shape = {"width": 1e-4, "near": 0.0, "whole": 0.0, "pieces": 1, "own": 0.0, "spread": spread}
        objective = FlowMap(RectifiedFlow(), NoiseLevels(), "x", "x", **shape)

        def network(z: Tensor, tau: Tensor, rho: Tensor | None = None) -> Tensor:
            return truth if rho is None else scale * noise

        loss = objective.map_error(network, truth, noise, levels, {}, {}, size * other)
        # An error counts twice the width times its size.
        (gradient,) = torch.autograd.grad(loss.mean() / 2e-4, scale)
        return float(gradient)

    # A distance alone is as good anywhere between the ends. With it the slope leads to the ends from both sides.
    for size, spread, wanted in [
        (0.5, 0.0, 0.0),
        (0.5, 1.0, -0.5),
        (0.5, 0.5, -0.25),
        (1.5, 1.0, 0.5),
        (1.5, 0.5, 0.75),
    ]:
        assert slope(size, spread) == pytest.approx(wanted, abs=1e-3)


def test_a_frame_that_waits_does_not_thin_out_the_error_of_those_that_move() -> None:
    path, place = RectifiedFlow(), torch.arange(SHAPE[0])
    tau = torch.full((SHAPE[0], SHAPE[2]), 0.9, dtype=torch.float64)
    rho = torch.cat([torch.full_like(tau[:, :1], 0.3), tau[:, 1:]], 1)

    def off(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        exact = Exact(path)(z, tau, rho, place)
        return exact if rho is None else exact + 0.1 * per_frame(tau > rho)

    objective = FlowMap(path, NoiseLevels(), prediction="v", pieces=64, width=10.0, near=0.0, whole=0.0)
    x, eps = MEAN + SPREAD * randn(5), randn(6)
    loss = objective.map_error(off, x, eps, ways(tau, rho, 64), {"place": place}, {})
    torch.testing.assert_close(loss, torch.full_like(loss, 1e-2), rtol=0.05, atol=0)


def test_the_caption_guides_away_from_what_replaces_a_dropped_one() -> None:
    network, (x, condition) = small().float(), inputs(4)
    x, condition = x.float(), {k: v.float() if v.is_floating_point() else v for k, v in condition.items()}

    def losses(scale: float, null: Tensor) -> Tensor:
        levels = NoiseLevels({"shared": 1.0})
        objective = FlowMap(RectifiedFlow(), levels, "x", pieces=2, scale=scale, caption_dropout=0.0)
        return objective(network, x, condition, {"text": null}, clip_seeds(3, 0, range(4)))

    plain, nothing = losses(1.0, condition["text"]), torch.zeros_like(condition["text"])
    assert torch.equal(plain, losses(1.0, nothing))
    torch.testing.assert_close(losses(2.3, condition["text"]), plain, rtol=1e-4, atol=0)
    assert ((losses(2.3, nothing) - plain).abs() > 1e-3 * plain).all()


def test_the_errors_of_means_count_as_asked() -> None:
    path, place = RectifiedFlow(), torch.arange(SHAPE[0])
    tau = torch.full((SHAPE[0], SHAPE[2]), 0.9, dtype=torch.float64)
    difference = torch.sin(torch.arange(math.prod(SHAPE), dtype=torch.float64)).view(SHAPE) + 0.3

    def off(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        exact = Exact(path)(z, tau, rho, place)
        return exact if rho is None else exact + difference

    x, eps = MEAN + SPREAD * randn(5), randn(6)
    for near, whole in ((0.0, 0.0), (4.0, 0.0), (0.0, 30.0)):
        objective = FlowMap(path, NoiseLevels(), prediction="v", pieces=64, width=1e3, near=near, whole=whole)
        loss = objective.map_error(off, x, eps, ways(tau, tau - 0.5, 64), {"place": place}, {})
        wanted = frame_error(difference, near, whole).mean(1)
        torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0)


@each_path
@pytest.mark.parametrize("kind", ["x", "v"])
@pytest.mark.parametrize("own", [0.0, 0.5])
def test_the_loss_of_the_exact_mean_velocity_is_zero_in_every_form(path: Path, kind: str, own: float) -> None:
    tau, rho = uneven()
    tau = tau.clamp(0, 0.95)
    rho = torch.minimum(rho.clamp_min(0.1), tau)
    exact, place = Exact(path), torch.arange(SHAPE[0])

    def denoiser(z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        return getattr(convert(exact(z, tau, rho, place), z, tau, path, "v"), kind)

    x, eps = MEAN + SPREAD * randn(5), randn(6)
    objective = FlowMap(path, NoiseLevels(), prediction=kind, loss="v", floor=0.01)
    levels = ways(tau, rho, 64, own)
    loss = objective.map_error(denoiser, x, eps, levels, {"place": place}, {})
    moving = (tau > rho).any(1)
    assert float(loss[moving].max()) < 1e-4
    assert (loss[~moving] == 0).all(), "a clip that takes no step has nothing to learn"
    wrong = objective.map_error(
        lambda z, tau, rho=None, place=None: denoiser(z, tau, None, place), x, eps, levels, {"place": place}, {}
    )
    assert (wrong > 20 * loss)[moving].all(), "a network that only knows the velocity has an error"


def test_an_error_counts_by_its_square_up_to_the_width_and_by_its_size_beyond() -> None:
    path, place = RectifiedFlow(), torch.arange(SHAPE[0])
    tau = torch.full((SHAPE[0], SHAPE[2]), 0.9, dtype=torch.float64)
    levels, losses = ways(tau, tau - 0.01, 8), []
    x, eps = MEAN + SPREAD * randn(5), randn(6)
    for error in (0.01, 0.02, 100.0, 200.0):

        def off(
            z: Tensor, tau: Tensor, rho: Tensor | None = None, place: Tensor | None = None, error: float = error
        ) -> Tensor:
            return Exact(path)(z, tau, rho, place) + (0.0 if rho is None else error)

        objective = FlowMap(path, NoiseLevels(), prediction="v", pieces=8, width=0.5)
        losses.append(objective.map_error(off, x, eps, levels, {"place": place}, {}))
    torch.testing.assert_close(losses[1] / losses[0], torch.full_like(losses[0], 4.0), rtol=0.02, atol=0)
    torch.testing.assert_close(losses[3] / losses[2], torch.full_like(losses[0], 2.0), rtol=0.02, atol=0)


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


def bare(steps: bool = True, seed: int = 0) -> SpaceTimeTransformer:
    """Return a small network of float64 as built, with changes for steps or without."""
    torch.manual_seed(seed)
    return SpaceTimeTransformer(3, (1, 2, 2), 16, 2, 2, text_width=4, gate=0.3, step_rank=4 * steps).double()


def small(steps: bool = True, seed: int = 0) -> SpaceTimeTransformer:
    """Return a small network of float64 whose every weight has a part in its output."""
    network = bare(steps, seed)
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


def test_a_new_network_with_steps_gives_what_the_network_without_gives() -> None:
    one, two = small(steps=False), bare(seed=1)
    left = two.load_state_dict(one.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {re.sub(r"\.\d+", "", name).rpartition("step.")[0] for name in left.missing_keys} == {"embed_", "blocks."}
    z, condition = inputs(2)
    tau = torch.rand(2, 5).double()
    wanted = one(z, tau, **condition)
    assert torch.equal(two(z, tau, **condition), wanted)
    assert torch.equal(two(z, tau, rho=tau * 0.3, **condition), wanted)
    with pytest.raises(ValueError, match=r"model\.step_rank: found 0, expected a rank"):
        one(z, tau, rho=tau, **condition)


def test_steps_have_weights_of_their_own_and_the_velocity_never_meets_them() -> None:
    network, (z, condition) = small(), inputs(2)
    tau = torch.rand(2, 5).double()
    velocity, step = network(z, tau, **condition), network(z, tau, rho=0.3 * tau, **condition)
    mapped, plain = (kind(RectifiedFlow(), NoiseLevels()) for kind in (FlowMap, Objective))
    learn = {n: p for n, p in network.named_parameters() if mapped.learns(f"denoiser.{n}")}
    assert all(plain.learns(f"denoiser.{n}") == (n not in learn) for n, _ in network.named_parameters())
    # Down and up for each of three layers, with a bias, in both blocks, and the embedding of the step.
    assert len(learn) == 2 * 3 * 3 + 4
    for name, p in learn.items():
        kept = p.detach().clone()
        with torch.no_grad():
            p.add_(0.1)
        assert torch.equal(network(z, tau, **condition), velocity), name
        assert not torch.allclose(network(z, tau, rho=0.3 * tau, **condition), step), name
        with torch.no_grad():
            p.copy_(kept)
    # The change of a layer is the product of its two matrices, and adds to the layer's own.
    with torch.no_grad():
        for block in network.blocks:
            for layer, change in zip(
                (block.attention.qkv, block.mlp[0], block.mlp[2]), block.step.values(), strict=True
            ):
                layer.weight += change[1].weight @ change[0].weight
                layer.bias += change[1].bias
                change[1].weight.zero_()
                change[1].bias.zero_()
    torch.testing.assert_close(network(z, tau, rho=0.3 * tau, **condition), step)


def test_nothing_learns_through_the_end_from_another_noise() -> None:
    network, (x, condition) = small(), inputs(2)
    levels = torch.tensor([1.0, 1.0, 0.0]).double().view(3, 1, 1).expand(3, 2, 5)
    objective = FlowMap(RectifiedFlow(), NoiseLevels(), "x", "x")
    second = objective.second(network, x, levels, condition, (3, 4))
    assert second.shape == x.shape
    assert not second.requires_grad
    assert not torch.equal(second, objective.second(network, x, levels, condition, (5, 6)))


POLICIES = {"shared": 1.0, "prefix": 1.0, "ends": 1.0, "independent": 1.0, "lead": 1.0}


def test_clips_take_the_steps_of_the_samplers_as_often_as_asked() -> None:
    n, levels = 2000, NoiseLevels(POLICIES, base_shift=3.0, base_tokens=20, pure=0.2)
    objective, plain = FlowMap(RectifiedFlow(), levels, steps=(1, 4), pieces=2), Objective(RectifiedFlow(), levels)
    clip, seeds = torch.zeros(1, 5, 2, 2), clip_seeds(0, 0, range(n))
    draws = [objective.draw(clip, seed) for seed in seeds]
    for mine, theirs in zip(draws, (plain.draw(clip, seed) for seed in seeds), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), "the draws of any objective"
    ways = torch.stack([objective.way(clip, seed) for seed in seeds], 1)
    assert (ways[1:] <= ways[:-1]).all()
    assert ((ways[2] < ways[0]) == (ways[3] < ways[0])).all()
    assert (ways[1] == ways[0]).all(), "no sampler has twice the steps of another: the network takes no part"
    assert (ways[3] < ways[0]).any(1).all(), "every clip takes a step"
    # From pure noise the levels are those of the samplers.
    pure = NoiseLevels({"lead": 1.0}, base_shift=3.0, base_tokens=20)
    known = torch.zeros(1, 5, dtype=torch.bool)
    objective = FlowMap(RectifiedFlow(), pure, steps=(1, 4), pieces=2)
    taken = torch.stack([objective.way(clip, seed)[1:] for seed in seeds[:400]])
    assert (taken[:, :, 1:] == 1).all(), "frames that wait for a leader stay at pure noise while it moves"
    found = {tuple(round(float(level), 4) for level in way) for way in taken[:, :, 0]}
    whole, quarters = (schedule(2 * steps, known, shift=3.0)[:, 0, 0] for steps in (1, 4))
    wanted = [whole, *(quarters[2 * i : 2 * i + 3] for i in range(4))]
    assert found == {tuple(round(float(level), 4) for level in way) for way in wanted}
    assert abs(float((taken[:, 2, 0] + (taken[:, 0, 0] < 1) == 0).float().mean()) - 0.5) < 0.1


def test_the_own_step_leads_to_the_middle_where_it_is_a_step_of_another_sampler() -> None:
    pure = NoiseLevels({"lead": 1.0}, base_shift=3.0, base_tokens=20)
    objective = FlowMap(RectifiedFlow(), pure, steps=(1, 2, 3), pieces=2, own=0.25)
    ways = torch.stack([objective.way(torch.zeros(1, 5, 2, 2), seed) for seed in clip_seeds(0, 0, range(900))])[:, :, 0]
    known = torch.zeros(1, 5, dtype=torch.bool)
    one, two = (schedule(n, known, shift=3.0)[:, 0, 0] for n in (1, 2))
    # Of one step the first half is a step of two; of two and of three steps the halves are steps of no sampler here.
    long = (ways[:, 0] == one[0]) & (ways[:, -1] == one[1])
    own = ways[:, 1] < ways[:, 0]
    assert not own[~long].any()
    torch.testing.assert_close(ways[own][:, 1], two[1].expand(int(own.sum())))
    assert abs(float(own[long].float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / int(long.sum()))


def test_it_trains_a_network_and_clips_do_not_depend_on_each_other() -> None:
    network, (x, condition) = small().float(), inputs(4)
    x, condition = x.float(), {k: v.float() if v.is_floating_point() else v for k, v in condition.items()}
    objective, seeds = (
        FlowMap(RectifiedFlow(), NoiseLevels(POLICIES), "x", steps=[1, 2], pieces=3),
        clip_seeds(3, 0, range(4)),
    )
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


def test_euler_is_the_map_that_is_told_of_no_step() -> None:
    network, (z, condition) = small(steps=False), inputs(2)
    denoise = denoise_function(network, condition, RectifiedFlow(), "x")
    taus = schedule(3, torch.zeros(2, 5, dtype=torch.bool)).double()
    with pytest.raises(ValueError, match=r"model\.step_rank"):
        flow_map(denoise, z, taus, RectifiedFlow())
    both = denoise_function(small(), condition, RectifiedFlow(), "x")
    made = flow_map(lambda z, tau, rho: both(z, tau), z, taus, RectifiedFlow())
    torch.testing.assert_close(made, euler(both, z, taus, RectifiedFlow()))
