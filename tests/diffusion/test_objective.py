"""The objective: what is drawn, from which seed, and what the loss counts."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videodiff.diffusion.distillation import ProgressiveDistillation
from videodiff.diffusion.flow_map import FlowMap
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds, drop
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow
from videodiff.diffusion.prediction import KINDS

each_path = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=lambda path: type(path).__name__)
MIXED = {"shared": 1.0, "prefix": 1.0, "ends": 1.0, "independent": 1.0}


def clips(b: int = 8, t: int = 4) -> Tensor:
    return torch.randn(b, 2, t, 3, 3, generator=torch.Generator().manual_seed(7))


def captions(b: int) -> dict[str, Tensor]:
    """Return a condition whose text tells the clips apart, and a frame rate."""
    text = torch.arange(1.0, b + 1)[:, None, None].expand(b, 3, 2)
    return {"text": text, "text_mask": torch.ones(b, 3, dtype=torch.bool), "fps": torch.full((b,), 8.0)}


def no_caption() -> dict[str, Tensor]:
    return {"text": torch.zeros(1, 3, 2), "text_mask": torch.tensor([[True, False, False]])}


class Recorder:
    """A denoiser that keeps what it was given and answers with half of it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Tensor]] = []

    def __call__(self, z: Tensor, tau: Tensor, **condition: Tensor) -> Tensor:
        self.calls.append({"z": z, "tau": tau, **condition})
        return 0.5 * z

    def seen(self, name: str) -> Tensor:
        return torch.cat([call[name] for call in self.calls])


@each_path
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("loss", KINDS)
def test_the_exact_output_has_no_loss_at_any_level(path: Path, prediction: str, loss: str) -> None:
    x, tau = clips().double(), torch.linspace(0.001, 0.999, 32, dtype=torch.float64).view(8, 4)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = {"x": x, "eps": eps, "v": path.velocity(x, eps, tau)}[prediction]
    objective = Objective(path, NoiseLevels(), prediction, loss, floor=0.05)
    error = objective.error(lambda z, tau: exact, x, eps, tau, {})
    torch.testing.assert_close(error, torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-20)


def test_an_x_prediction_under_a_v_loss_weighs_by_the_inverse_square_of_the_level() -> None:
    x, off = clips().double(), 0.3
    tau = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)[:, None].expand(8, 4)
    objective = Objective(RectifiedFlow(), NoiseLevels(), "x", "v", floor=0.05)
    error = objective.error(lambda z, tau: x + off, x, torch.zeros_like(x), tau, {})
    torch.testing.assert_close(error, (off / tau[:, 0]) ** 2)


@each_path
@pytest.mark.parametrize("prediction", KINDS)
def test_known_frames_count_neither_in_the_loss_nor_in_the_gradient(path: Path, prediction: str) -> None:
    x, eps = clips(2), clips(2).flip(0)
    tau = torch.tensor([[0.0, 0.0, 0.6, 0.6], [0.0, 0.3, 0.7, 0.0]])
    output = torch.zeros_like(x).requires_grad_()
    Objective(path, NoiseLevels(), prediction).error(lambda z, tau: output, x, eps, tau, {}).sum().backward()
    reached = output.grad.abs().amax(dim=(1, 3, 4)) > 0
    assert torch.equal(reached, tau > 0)


@pytest.mark.parametrize("known", [0, 1, 2, 3])
def test_the_loss_is_a_mean_over_the_noisy_frames_alone(known: int) -> None:
    x, off = clips(1).double(), 0.5
    tau = torch.full((1, 4), 0.5, dtype=torch.float64)
    tau[:, :known] = 0
    objective = Objective(RectifiedFlow(), NoiseLevels(), "v", "v")
    error = objective.error(lambda z, tau: -x + off, x, torch.zeros_like(x), tau, {})
    torch.testing.assert_close(error, torch.tensor([off**2], dtype=torch.float64))


def test_a_clip_with_every_frame_known_has_loss_zero_and_no_nan() -> None:
    x = clips(1)
    error = Objective(RectifiedFlow(), NoiseLevels(), "x").error(lambda z, tau: z + 1, x, x, torch.zeros(1, 4), {})
    assert error.tolist() == [0.0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_global_batch_meets_the_same_noise_over_any_number_of_ranks(ranks: int) -> None:
    x, condition = clips(), captions(8)
    objective = Objective(RectifiedFlow(), NoiseLevels(MIXED), caption_dropout=0.5)
    whole, parts, means = Recorder(), Recorder(), []
    expected = objective(whole, x, condition, no_caption(), clip_seeds(3, 10, range(8))).mean()
    for rank in range(ranks):
        own = list(range(rank, 8, ranks))
        mine = {key: value[own] for key, value in condition.items()}
        means.append(objective(parts, x[own], mine, no_caption(), clip_seeds(3, 10, own)).mean())
    order = torch.tensor([p for rank in range(ranks) for p in range(rank, 8, ranks)])
    for name in ("z", "tau", "text", "text_mask"):
        assert torch.equal(parts.seen(name), whole.seen(name)[order])
    torch.testing.assert_close(torch.stack(means).mean(), expected)


def test_seeds_differ_between_runs_steps_and_positions() -> None:
    seeds = [s for seed in (0, 1, 2) for step in range(50) for s in clip_seeds(seed, step, range(16))]
    assert len(set(seeds)) == 3 * 50 * 16
    assert all(0 <= s < 2**63 for s in seeds)


def test_one_seed_draws_the_same_and_another_draws_anew() -> None:
    objective, clip = Objective(RectifiedFlow(), NoiseLevels()), clips(1)[0]
    (tau, eps, _), (tau_again, eps_again, _), (_, other, _) = (objective.draw(clip, seed) for seed in (5, 5, 6))
    assert torch.equal(tau, tau_again)
    assert torch.equal(eps, eps_again)
    assert not torch.isclose(eps, other).any()


def test_draws_do_not_follow_the_type_that_torch_makes_tensors_of() -> None:
    objective, clip = Objective(RectifiedFlow(), NoiseLevels(), caption_dropout=0.5), clips(1)[0]
    wanted = [objective.draw(clip, seed) for seed in range(20)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = [objective.draw(clip, seed) for seed in range(20)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pairs in zip(found, wanted, strict=True) for pair in zip(*pairs, strict=True))


class Told(NoiseLevels):
    """Levels that note of how many frames and tokens the clips are."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[tuple[int, int]] = set()

    def __call__(self, t: int, tokens: int, *rest: Any) -> Tensor:
        self.told.add((t, tokens))
        return super().__call__(t, tokens, *rest)


@pytest.mark.parametrize("kind", [Objective, FlowMap, ProgressiveDistillation])
def test_levels_are_drawn_for_the_tokens_of_the_clip(kind: type[Objective]) -> None:
    objective = kind(RectifiedFlow(), Told())
    objective.network = nn.Identity()
    objective.network.forward = halved = lambda z, tau, rho=None: 0.5 * z
    objective(halved, torch.zeros(1, 3, 2, 5, 7), {}, {}, [1])
    assert objective.levels.told == {(2, 2 * 5 * 7)}


def test_the_noise_is_standard_normal() -> None:
    eps = Objective(RectifiedFlow(), NoiseLevels()).draw(torch.zeros(4, 25, 20, 20), seed=0)[1]
    n = eps.numel()
    assert abs(float(eps.mean())) < 4 / math.sqrt(n)
    assert abs(float(eps.var()) - 1) < 4 * math.sqrt(2 / n)


def test_a_dropped_caption_is_the_null_and_the_rest_stays() -> None:
    condition, dropped = captions(4), torch.tensor([False, True, False, True])
    kept = drop(condition, no_caption(), dropped)
    assert kept["text"][:, 0, 0].tolist() == [1.0, 0.0, 3.0, 0.0]
    assert kept["text_mask"].sum(1).tolist() == [3, 1, 3, 1]
    assert torch.equal(kept["fps"], condition["fps"])


def test_captions_are_dropped_at_the_rate_asked_for() -> None:
    n, rate, denoiser = 2000, 0.25, Recorder()
    objective = Objective(RectifiedFlow(), NoiseLevels(), caption_dropout=rate)
    objective(denoiser, torch.zeros(n, 1, 1, 1, 1), captions(n), no_caption(), clip_seeds(0, 0, range(n)))
    dropped = denoiser.seen("text")[:, 0, 0] == 0
    assert torch.equal(dropped, denoiser.seen("text_mask").sum(1) == 1)
    assert abs(float(dropped.float().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / n)


@pytest.mark.parametrize(("rate", "text"), [(0.0, [1.0, 2.0, 3.0]), (1.0, [0.0, 0.0, 0.0])])
def test_no_dropout_keeps_every_caption_and_full_dropout_none(rate: float, text: list[float]) -> None:
    denoiser = Recorder()
    objective = Objective(RectifiedFlow(), NoiseLevels(), caption_dropout=rate)
    objective(denoiser, clips(3), captions(3), no_caption(), clip_seeds(0, 0, range(3)))
    assert denoiser.seen("text")[:, 0, 0].tolist() == text


def test_one_frame_trains_like_any_clip() -> None:
    loss = Objective(RectifiedFlow(), NoiseLevels(MIXED))(
        Recorder(), clips(16, t=1), captions(16), no_caption(), clip_seeds(0, 0, range(16))
    )
    assert loss.shape == (16,)
    assert (loss > 0).all()
    assert loss.isfinite().all()


def test_more_seeds_than_clips_are_an_error() -> None:
    with pytest.raises(ValueError, match="longer"):
        Objective(RectifiedFlow(), NoiseLevels())(Recorder(), clips(2), captions(2), no_caption(), [1, 2, 3])


@pytest.mark.parametrize("name", ["prediction", "loss"])
def test_an_unknown_prediction_type_is_an_error_that_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"objective\.{name}: found 'score', expected one of x, eps, v"):
        Objective(RectifiedFlow(), NoiseLevels(), **{name: "score"})


@pytest.mark.parametrize("kind", [FlowMap, ProgressiveDistillation])
def test_few_steps_are_not_learned_from_predicted_noise(kind: type[Objective]) -> None:
    # Of all networks the one that answers z would have no error at the first step, and its clip would be empty.
    with pytest.raises(ValueError, match=r"objective\.prediction: found 'eps' for few steps, expected x or v"):
        kind(RectifiedFlow(), NoiseLevels(), prediction="eps")


ALONE = """
import importlib, pkgutil, sys, torch
import videodiff.denoiser, videodiff.diffusion
for room in (videodiff.denoiser, videodiff.diffusion):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.diffusion.levels import NoiseLevels
from videodiff.diffusion.objective import Objective, clip_seeds
from videodiff.diffusion.path import RectifiedFlow

denoiser = SpaceTimeTransformer(width=8, depth=2, heads=2, text_width=4)
condition = {"text": torch.randn(2, 3, 4), "text_mask": torch.ones(2, 3, dtype=torch.bool), "fps": torch.ones(2)}
objective = Objective(path=RectifiedFlow(), levels=NoiseLevels())
loss = objective(denoiser, torch.randn(2, 3, 2, 8, 8), condition, {}, seeds=clip_seeds(0, 0, range(2)))
loss.mean().backward()

assert denoiser.head.weight.grad.isfinite().all() and denoiser.head.weight.grad.any()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_objective_and_denoiser_train_in_five_lines_without_lightning_hydra_or_deepspeed() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "hydra", "omegaconf", "deepspeed"}
