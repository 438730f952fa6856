"""Progressive distillation: what two steps of the teacher do, asked of one step of the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from videodiff.diffusion.distillation import ProgressiveDistillation
from videodiff.diffusion.levels import NoiseLevels, shift_levels
from videodiff.diffusion.objective import clip_seeds
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow
from videodiff.diffusion.prediction import convert
from videodiff.diffusion.sampler import ddim

each_path = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=lambda path: type(path).__name__)
SHAPE = (16, 2, 4, 2, 2)


class Teacher(nn.Module):
    """A denoiser of x whose answer depends on everything that it is given."""

    def forward(self, z: Tensor, tau: Tensor, bias: Tensor) -> Tensor:
        return torch.tanh(0.7 * z + z.mean(2, keepdim=True) + tau[:, None, :, None, None]) + bias.view(-1, 1, 1, 1, 1)


def objective(path: Path, kind: str = "x", steps: int = 4) -> ProgressiveDistillation:
    levels = NoiseLevels({"shared": 1.0, "prefix": 1.0, "lead": 1.0}, base_shift=3.0, base_tokens=16)
    made = ProgressiveDistillation(path, levels, kind, kind, steps=steps)
    made.network = Teacher()
    return made


def clips() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def grid(
    made: ProgressiveDistillation, x: Tensor, seeds: list[int], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return where the steps of all clips begin, their middles and their ends."""
    return [
        torch.stack([made.on_grid(clip, seed, back) for clip, seed in zip(x, seeds, strict=True)]).to(dtype)
        for back in (0.0, 0.5, 1.0)
    ]


@each_path
def test_one_step_with_the_answer_goes_where_two_steps_of_the_teacher_go(path: Path) -> None:
    made, z, bias = objective(path), clips(), torch.linspace(-1, 1, SHAPE[0], dtype=torch.float64)
    seeds = clip_seeds(0, 0, range(SHAPE[0]))
    taus = [
        torch.stack([made.on_grid(x, s, back).double() for x, s in zip(z, seeds, strict=True)]) for back in (0, 0.5, 1)
    ]
    answer = made.answer(z, taus, {"bias": bias})
    wanted = ddim(lambda z, tau: made.network(z, tau, bias), z, torch.stack(taus), path)
    found = ddim(lambda z, tau: answer, z, torch.stack([taus[0], taus[2]]), path)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    waits = (taus[0] == 1) & (taus[2] == 1)
    assert waits.any()
    own = made.network(z, taus[0], bias)
    torch.testing.assert_close(answer.movedim(1, 2)[waits], own.movedim(1, 2)[waits])


def test_levels_lie_on_the_grid_of_the_sampler_and_known_frames_stay_known() -> None:
    made, steps = objective(RectifiedFlow(), steps=4), 4
    even = torch.linspace(0, 1, 2 * steps + 1)
    shifted = 3 * even / (1 + 2 * even)
    known = 0
    for seed in clip_seeds(0, 1, range(200)):
        start, middle, end = (made.on_grid(torch.zeros(2, 4, 2, 2), seed, back) for back in (0.0, 0.5, 1.0))
        for levels in (start, middle, end):
            assert float((levels[:, None] - shifted).abs().min(1).values.max()) < 1e-6
        plain = made.draw(torch.zeros(2, 4, 2, 2), seed)[0]
        # From the next level of the grid on, before the shift; known frames and those that wait stay.
        torch.testing.assert_close(start, shift_levels((shift_levels(plain, 1 / 3) * steps).ceil() / steps, 3))
        moves = (plain > 0) & (plain < 1)
        assert (end[moves] < middle[moves]).all()
        assert (middle[moves] < start[moves]).all()
        assert torch.equal(start[~moves], plain[~moves])
        known += int((plain == 0).sum())
    assert known


@pytest.mark.parametrize("kind", ["x", "v"])
def test_a_network_that_gives_the_answer_has_no_error_and_the_teacher_gets_no_gradient(kind: str) -> None:
    made, x = objective(RectifiedFlow(), kind), clips().float()
    bias = torch.zeros(SHAPE[0], requires_grad=True)

    def answer(z: Tensor, tau: Tensor, bias: Tensor) -> Tensor:
        clip = made.answer(z, grid(made, x, seeds), {"bias": bias}) + 0 * bias.sum()
        return getattr(convert(clip, z, tau, made.path, "x"), kind)

    seeds = clip_seeds(0, 2, range(SHAPE[0]))
    assert float(made(answer, x, {"bias": bias}, {}, seeds).detach().max()) < 1e-8
    loss = made(lambda z, tau, bias: made.network(z, tau, bias), x, {"bias": bias}, {}, seeds)
    assert float(loss.detach().max()) > 1e-3, "one step of the teacher is not two"


def test_the_loss_is_the_mean_over_the_noisy_frames_of_clips_where_their_step_begins() -> None:
    made, x, bias = objective(RectifiedFlow()), clips().float(), torch.zeros(SHAPE[0])
    seeds, seen = clip_seeds(0, 3, range(SHAPE[0])), []

    def nothing(z: Tensor, tau: Tensor, bias: Tensor) -> Tensor:
        seen.append((z, tau))
        return 0 * z

    loss = made(nothing, x, {"bias": bias}, {}, seeds)
    taus = grid(made, x, seeds)
    eps, level = (
        torch.stack([made.draw(*pair)[1] for pair in zip(x, seeds, strict=True)]),
        taus[0][:, None, :, None, None],
    )
    z = (1 - level) * x + level * eps
    torch.testing.assert_close(seen, [(z, taus[0])])
    answer, noisy = made.answer(z, taus, {"bias": bias}), taus[0] > 0
    assert 0 < noisy.sum() < noisy.numel()
    wanted = [one[:, where].square().mean() for one, where in zip(answer, noisy, strict=True)]
    torch.testing.assert_close(loss, torch.stack(wanted))


def test_without_a_teacher_it_says_so() -> None:
    made = objective(RectifiedFlow())
    made.network = None
    with pytest.raises(ValueError, match=r"objective\.teacher: found none"):
        made(Teacher(), clips(), {"bias": torch.zeros(SHAPE[0])}, {}, clip_seeds(0, 0, range(SHAPE[0])))
