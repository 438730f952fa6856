"""The two paths: their ends, their slopes and their defining equations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.diffusion.path import Cosine, Path, RectifiedFlow, per_frame

PATHS = [RectifiedFlow(), Cosine()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
inside = st.floats(1e-4, 1 - 1e-4)


def clips(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=dtype) for _ in range(2))
    return x, eps


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_path_are_the_clip_and_the_noise_to_the_bit(path: Path, dtype: torch.dtype) -> None:
    x, eps = clips(dtype)
    tau = torch.zeros(2, 4, dtype=dtype)
    assert torch.equal(path.mix(x, eps, tau), x)
    assert torch.equal(path.mix(x, eps, tau + 1), eps)


@each_path
@given(tau=inside)
@settings(deadline=None, max_examples=40)
def test_velocity_is_the_numerical_derivative_of_the_mix(path: Path, tau: float) -> None:
    x, eps = clips()
    level, step = torch.full((2, 4), tau, dtype=torch.float64), 1e-5
    numerical = (path.mix(x, eps, level + step) - path.mix(x, eps, level - step)) / (2 * step)
    # Central differences err by step^2 / 6 times the third derivative, at most (pi / 2)^3 per unit of x and eps.
    torch.testing.assert_close(path.velocity(x, eps, level), numerical, rtol=0, atol=1e-8)


@given(tau=inside)
@settings(deadline=None, max_examples=40)
def test_rectified_flow_keeps_amounts_and_cosine_keeps_variance(tau: float) -> None:
    level = torch.tensor([[tau]], dtype=torch.float64)
    straight, cosine = PATHS
    assert math.isclose(straight.alpha(level) + straight.sigma(level), 1, abs_tol=1e-15)
    assert math.isclose(cosine.alpha(level) ** 2 + cosine.sigma(level) ** 2, 1, abs_tol=1e-15)
    assert math.isclose(cosine.alpha(level), math.cos(math.pi / 2 * tau), abs_tol=1e-15)


@each_path
def test_every_frame_of_every_clip_mixes_at_its_own_level(path: Path) -> None:
    x, eps = clips()
    tau = torch.linspace(0, 1, 8, dtype=torch.float64).view(2, 4)
    z = path.mix(x, eps, tau)
    for clip, frame in itertools.product(range(2), range(4)):
        level = tau[clip, frame].view(1, 1)
        wanted = path.alpha(level) * x[clip, :, frame] + path.sigma(level) * eps[clip, :, frame]
        assert torch.equal(z[clip, :, frame], wanted)


def test_a_level_gets_the_axes_of_a_clip() -> None:
    assert per_frame(torch.zeros(2, 5)).shape == (2, 1, 5, 1, 1)


@pytest.mark.parametrize("missing", ["alpha", "sigma", "slopes"])
def test_a_path_that_leaves_out_a_function_says_which(missing: str) -> None:
    with pytest.raises(TypeError, match=f"Path does not say .*{missing}"):
        getattr(Path(), missing)(torch.zeros(1, 1))
