"""Guidance: a wrapper around denoise functions that calls no more than it must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videodiff.diffusion.guidance import (
    classifier_free,
    denoise_function,
    holding,
    reconstructing,
    with_history,
)
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow, per_frame
from videodiff.diffusion.prediction import KINDS


class Constant:
    """A denoise function that always expects the same value and counts its calls."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, z: Tensor, tau: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(z, self.value)


def guided(scale: float, tau: list[float], interval: tuple[float, float] = (0.0, 1.0)) -> tuple[list[float], int]:
    """Guide 2 away from 1 at these levels: returns the value of each frame and the calls without a caption."""
    unconditional = Constant(1.0)
    denoise = classifier_free(Constant(2.0), unconditional, scale, interval)
    x = denoise(torch.zeros(1, 1, len(tau), 1, 1), torch.tensor([tau]))
    return x.flatten().tolist(), unconditional.calls


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 4.0])
def test_guidance_goes_scale_times_the_way_from_no_caption_to_caption(scale: float) -> None:
    assert guided(scale, [0.5]) == ([1 + scale * (2 - 1)], 1)


def test_scale_one_is_no_guidance_and_saves_the_second_call() -> None:
    assert guided(1.0, [0.5]) == ([2.0], 0)


def test_only_frames_within_the_interval_are_pushed() -> None:
    values, calls = guided(3.0, [0.2, 0.25, 0.5, 0.75, 0.8], interval=(0.25, 0.75))
    assert values == [2.0, 4.0, 4.0, 4.0, 2.0]
    assert calls == 1


def test_outside_the_interval_the_second_call_is_saved() -> None:
    assert guided(3.0, [0.1, 0.9], interval=(0.25, 0.75)) == ([2.0, 2.0], 0)


def test_known_frames_are_never_pushed() -> None:
    assert guided(3.0, [0.0, 1.0]) == ([2.0, 4.0], 1)
    assert guided(3.0, [0.0, 0.0]) == ([2.0, 2.0], 0)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_any_prediction_type_becomes_a_function_that_expects_the_clip(path: Path, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(1, 2, 3, 4, 4, generator=generator) for _ in range(2))
    tau = torch.tensor([[0.2, 0.5, 0.9]])
    answer = {"x": x, "eps": eps, "v": path.velocity(x, eps, tau)}[kind]
    seen = []

    def network(z: Tensor, tau: Tensor, fps: Tensor) -> Tensor:
        seen.append(float(fps))
        return answer

    denoise = denoise_function(network, {"fps": torch.tensor(8.0)}, path, kind)
    torch.testing.assert_close(denoise(path.mix(x, eps, tau), tau), x, rtol=0, atol=1e-5)
    assert seen == [8.0]


def test_a_frame_that_is_rescaled_whole_has_the_spread_that_it_had_without_guidance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_null = (torch.randn(2, 3, 4, 5, 5, generator=generator) for _ in range(2))
    tau = torch.full((2, 4), 0.5)
    plain = classifier_free(lambda z, tau: x, lambda z, tau: x_null, 5.0)(x, tau)
    for share in (0.25, 1.0):
        made = classifier_free(lambda z, tau: x, lambda z, tau: x_null, 5.0, rescale=share)(x, tau)
        spread, was, wanted = (one.std(dim=(1, 3, 4)) for one in (made, plain, x))
        torch.testing.assert_close(spread, was + share * (wanted - was))
        # No direction changes: it is the same frame, scaled.
        torch.testing.assert_close(made / made.norm(), plain / plain.norm(), atol=0.01, rtol=0.2)


def test_history_is_compared_with_itself_as_noise_and_only_other_frames_are_pushed() -> None:
    path, history = RectifiedFlow(), torch.tensor([[True, True, False]])
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(1, 2, 3, 4, 4, generator=generator) for _ in range(2))
    tau, seen = torch.tensor([[0.0, 0.0, 0.7]]), []

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        seen.append((z, tau))
        return z + per_frame(tau)

    for level in (1.0, 0.5):
        seen.clear()
        made = with_history(denoise, path, history, eps, 3.0, level)(z, tau)
        (_, _), (blind, blind_tau) = seen
        assert blind_tau.tolist() == [[level, level, pytest.approx(0.7)]]
        torch.testing.assert_close(blind[:, :, :2], (1 - level) * z[:, :, :2] + level * eps[:, :, :2])
        assert torch.equal(blind[:, :, 2], z[:, :, 2])
        torch.testing.assert_close(made, z + per_frame(tau))
    # A network whose expectation for the last frame follows the history: twice as far from what it is without.
    by_history = with_history(lambda z, tau: z[:, :, :1].expand_as(z), path, history, eps, 2.0)(z, tau)
    torch.testing.assert_close(by_history[:, :, 2], eps[:, :, 0] + 2 * (z[:, :, 0] - eps[:, :, 0]))
    torch.testing.assert_close(by_history[:, :, :2], z[:, :, :1].expand(-1, -1, 2, -1, -1))
    plain = Constant(1.0)
    assert with_history(plain, path, history, eps, 1.0) is plain
    none = ~history & history
    torch.testing.assert_close(with_history(plain, path, none, eps, 3.0)(z, tau), plain(z, tau))


def test_reconstruction_moves_along_the_gradient_of_the_error_in_what_is_kept() -> None:
    # A linear network: x = w z, where each pixel is the sum of a row. The gradient is 2 w^T m (w z - clip).
    path, generator = RectifiedFlow(), torch.Generator().manual_seed(0)
    w = torch.randn(4, 4, generator=generator)
    z, clip = (torch.randn(1, 1, 1, 1, 4, generator=generator) for _ in range(2))
    kept = torch.tensor([True, True, False, False]).view(1, 1, 1, 1, 4)
    tau = torch.tensor([[0.25]])
    with torch.no_grad():
        made = reconstructing(lambda z, tau: z @ w.T, path, clip, kept, 3.0)(z, tau)
    x = z @ w.T
    slope = 2 * ((x - clip) * kept) @ w
    torch.testing.assert_close(made, x - 3.0 / 2 * 0.75 * slope)
    assert not made.requires_grad
    plain = Constant(1.0)
    assert reconstructing(plain, path, clip, kept, 0.0) is plain
    assert torch.equal(holding(plain, clip, kept)(z, tau), torch.where(kept, clip, torch.ones_like(clip)))
