"""The same arithmetic on the device as on the CPU: network, objective, samplers, optimizers; bfloat16 near float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from gpu.check import Check
from torch import Tensor, nn

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import Cosine, RectifiedFlow
from videodiff.diffusion.prediction import KINDS
from videodiff.diffusion.sampler import ddim, dpm_solver_2m, euler, heun
from videodiff.generation.settings import Generation, Network, clip_noise, nothing_given
from videodiff.training.module import parameter_groups
from videodiff.training.optimizer import AdamW, Muon

SAMPLERS = (euler, heun, ddim, dpm_solver_2m)
POLICIES = {"shared": 0.4, "prefix": 0.3, "ends": 0.1, "independent": 0.1, "lead": 0.1}
# Rounding of float32 in sums of another order; of bfloat16, eight bits, through some ten layers.
FLOAT32, BFLOAT16 = 1e-4, 4e-2


def run(check: Check) -> None:
    """Compare a small network with weights that matter everywhere."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    here, there, inputs = network(check.tiny), None, batch(check.tiny)
    there = copy.deepcopy(here).to(check.device)
    moved = {name: value.to(check.device) for name, value in inputs.items()}
    check.part("network", lambda: compare_network(check, here, there, inputs, moved))
    check.part("draws", lambda: compare_draws(check, inputs["z"]))
    for prediction in KINDS:
        check.part(
            f"objective, {prediction} predicted",
            lambda prediction=prediction: compare_objective(check, prediction, here, there, inputs, moved),
        )
    for sampler in SAMPLERS:
        for prediction in KINDS:
            check.part(
                f"{sampler.__name__}, {prediction} predicted",
                lambda s=sampler, p=prediction: compare_sampler(check, s, p, here, there, inputs, moved),
            )
    for make in (AdamW, Muon):
        check.part(make.__name__, lambda make=make: compare_optimizer(check, make, here))


def network(tiny: bool) -> SpaceTimeTransformer:
    """Return the network on the CPU."""
    width, heads = (32, 2) if tiny else (256, 4)
    axes = ("space", "time", "spacetime")
    made = SpaceTimeTransformer(4, (1, 2, 2), width, 3 if tiny else 6, heads, axes, text_width=16, gate=1.0)
    torch.manual_seed(0)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3 / p.shape[-1] ** 0.5)
    return made


def batch(tiny: bool) -> dict[str, Tensor]:
    """Return clips, levels and captions on the CPU."""
    # On the CPU the samplers take most of the time; 100 positions and 800 tokens are multiples of no kernel's block.
    b, t, side = (2, 3, 8) if tiny else (4, 8, 20)
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(9) < torch.randint(1, 10, (b, 1), generator=generator)
    return {
        "z": torch.randn(b, 4, t, side, side, generator=generator),
        "tau": torch.rand(b, t, generator=generator),
        "text": torch.randn(b, 9, 16, generator=generator),
        "text_mask": mask,
        "fps": torch.tensor([8.0, 24.0, 0.0, 12.0])[:b],
    }


def condition(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("text", "text_mask", "fps")}


def null(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = torch.zeros_like(inputs["text_mask"][:1])
    mask[:, 0] = True
    return {"text": torch.zeros_like(inputs["text"][:1]), "text_mask": mask}


def gradients(made: nn.Module, loss: Tensor) -> Tensor:
    """Return all gradients of a loss in one vector."""
    made.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])


def compare_network(check: Check, here: nn.Module, there: nn.Module, inputs: Any, moved: Any) -> None:
    wanted, found = here(**inputs), there(**moved)
    check.near("network float32", found, wanted, FLOAT32)
    wanted_grads = gradients(here, wanted.square().mean())
    check.near("network's gradients float32", gradients(there, found.square().mean()), wanted_grads, FLOAT32)
    with torch.autocast(check.device.type, torch.bfloat16):
        low = there(**moved)
    check.near("network bfloat16 beside float32", low, found, BFLOAT16)
    check.near(
        "network's gradients bfloat16 beside float32", gradients(there, low.square().mean()), wanted_grads, BFLOAT16
    )


def compare_draws(check: Check, z: Tensor) -> None:
    """Levels and dropped captions are the same on every device; noise depends on the seed, on nothing beside it."""
    objective, seeds = (
        Objective(RectifiedFlow(), NoiseLevels(POLICIES), caption_dropout=0.5),
        clip_seeds(0, 7, range(8)),
    )
    clips = z[:1].expand(8, *z.shape[1:])
    here, there = (
        [objective.draw(clip, seed) for clip, seed in zip(c, seeds, strict=True)]
        for c in (clips, clips.to(check.device))
    )
    same = all(torch.equal(a[i], b[i].cpu()) for a, b in zip(here, there, strict=True) for i in (0, 2))
    check.hold("levels and dropped captions are the CPU's to the bit", same)
    again = [objective.draw(clip, seed)[1] for clip, seed in zip(clips.to(check.device), seeds, strict=True)]
    check.hold("a seed gives its noise again", all(torch.equal(a[1], b) for a, b in zip(there, again, strict=True)))
    noise = torch.stack(again).double()
    n = noise.numel()
    check.hold("noise has the mean 0", abs(float(noise.mean())) < 5 / n**0.5, f"{float(noise.mean()):.3g}")
    check.hold(
        "noise has the variance 1", abs(float(noise.var()) - 1) < 5 * (2 / n) ** 0.5, f"{float(noise.var()):.3g}"
    )
    flat = noise.flatten(1)
    apart = torch.corrcoef(flat).cpu() - torch.eye(8)
    check.hold("two seeds have nothing in common", float(apart.abs().max()) < 6 / flat.shape[1] ** 0.5)


def compare_objective(
    check: Check, prediction: str, here: nn.Module, there: nn.Module, inputs: Any, moved: Any
) -> None:
    """The loss at the CPU's noise, on both paths."""
    for path in (RectifiedFlow(), Cosine()):
        objective = Objective(path, NoiseLevels(POLICIES), prediction)
        seeds = clip_seeds(0, 1, range(len(inputs["z"])))
        draws = [objective.draw(clip, seed) for clip, seed in zip(inputs["z"], seeds, strict=True)]
        tau, eps = (torch.stack([draw[i] for draw in draws]) for i in (0, 1))
        wanted = objective.error(here, inputs["z"], eps, tau, condition(inputs))
        where = (moved["z"], eps.to(check.device), tau.to(check.device), condition(moved))
        found = objective.error(there, *where)
        name = f"loss, {prediction} predicted, {type(path).__name__}"
        check.near(f"{name}, float32", found, wanted, FLOAT32)
        with torch.autocast(check.device.type, torch.bfloat16):
            low = objective.error(there, *where)
        check.near(f"{name}, bfloat16 beside float32", low, found, BFLOAT16)
        whole = objective(there, moved["z"], condition(moved), null(moved), seeds)
        parts = [
            objective(
                there,
                moved["z"][i : i + 1],
                {k: v[i : i + 1] for k, v in condition(moved).items()},
                null(moved),
                seeds[i : i + 1],
            )
            for i in range(len(seeds))
        ]
        check.near(f"{name}, one clip at a time", torch.cat(parts), whole, FLOAT32)


def compare_sampler(
    check: Check, sampler: Any, prediction: str, here: nn.Module, there: nn.Module, inputs: Any, moved: Any
) -> None:
    """Clips from the same noise, one frame of one clip given."""
    generation = Generation(sampler, steps=4, shift=2.0, scale=2.0, lead=1)
    noise = clip_noise(inputs["z"].shape[1:], range(len(inputs["z"])))
    known = torch.zeros(noise.shape[0], noise.shape[2], dtype=torch.bool)
    known[0, 0] = True

    def made(network: nn.Module, given: Any) -> Tensor:
        device = given["z"].device
        start = noise.to(device)
        frames = nothing_given(start)._replace(clip=given["z"], known=known.to(device))
        asked = Network(network, condition(given), null(given), RectifiedFlow(), prediction)
        return generation(asked, start, frames)

    # At pure noise, a clip that is told by its noise is divided by a thousandth: the rounding of the network grows so.
    much = 100 if prediction == "eps" else 10
    found = made(there, moved)
    check.near(f"{sampler.__name__}, {prediction} predicted, float32", found, made(here, inputs), much * FLOAT32)
    check.hold(f"{sampler.__name__} keeps a given frame to the bit", torch.equal(found[0, :, 0], moved["z"][0, :, 0]))
    with torch.autocast(check.device.type, torch.bfloat16):
        low = made(there, moved)
    check.near(
        f"{sampler.__name__}, {prediction} predicted, bfloat16 beside float32",
        low,
        found,
        0.5 if prediction == "eps" else 0.1,
    )


def compare_optimizer(check: Check, make: Any, network: nn.Module) -> None:
    """Three steps with the same gradients; the average too."""
    ends, averages = [], []
    for device in ("cpu", check.device):
        ours = copy.deepcopy(network).to(device)
        optimizer = make(parameter_groups(ours.named_parameters()), lr=1e-2, ema_decay=0.5)
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            for p in ours.parameters():
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten().cpu() for p in ours.parameters()]))
        averages.append(torch.cat([optimizer.state[p]["ema"].flatten().cpu() for p in ours.parameters()]))
        if check.cuda and str(device) != "cpu":
            fused = [group["fused"] for group in optimizer.param_groups if not (make is Muon and group["matrix"])]
            check.hold(f"{make.__name__} is fused on CUDA", all(fused))
    check.near(f"{make.__name__}, three steps", ends[1], ends[0], FLOAT32)
    check.near(f"{make.__name__}, the average after three steps", averages[1], averages[0], FLOAT32)
