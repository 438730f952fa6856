"""Guidance: a wrapper around denoise functions that calls no more than it must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videodiff.diffusion.guidance import classifier_free, denoise_function
from videodiff.diffusion.path import Cosine, Path, RectifiedFlow
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
