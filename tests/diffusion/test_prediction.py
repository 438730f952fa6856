"""Conversions between x, eps and v: exact in both directions, finite at the ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videodiff.diffusion.path import Cosine, Path, RectifiedFlow, per_frame
from videodiff.diffusion.prediction import KINDS, Prediction, convert

each_path = pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()], ids=lambda path: type(path).__name__)
each_kind = pytest.mark.parametrize("kind", KINDS)


def example(path: Path, tau: Tensor) -> tuple[Tensor, Prediction]:
    """Return a noised clip and the truth about it in all three forms."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(*tau.shape[:1], 2, tau.shape[1], 2, 2, generator=generator, dtype=tau.dtype) for _ in "xe")
    return path.mix(x, eps, tau), Prediction(x, eps, path.velocity(x, eps, tau))


@each_path
@each_kind
@given(tau=st.floats(1e-5, 1 - 1e-5))
@settings(deadline=None, max_examples=30)
def test_any_form_gives_back_the_other_two(path: Path, kind: str, tau: float) -> None:
    level = torch.full((1, 2), tau, dtype=torch.float64)
    z, truth = example(path, level)
    made = convert(getattr(truth, kind), z, level, path, kind)
    # A division by a share of 1e-5 turns rounding of 1e-16 into 1e-11.
    for name in KINDS:
        torch.testing.assert_close(getattr(made, name), getattr(truth, name), rtol=0, atol=1e-9)


@each_path
@each_kind
@given(tau=st.floats(1e-5, 1 - 1e-5), other=st.sampled_from(KINDS))
@settings(deadline=None, max_examples=20)
def test_a_wrong_output_is_still_the_same_guess_in_every_form(path: Path, kind: str, tau: float, other: str) -> None:
    level = torch.full((1, 2), tau, dtype=torch.float64)
    z, truth = example(path, level)
    output = getattr(truth, kind) + 0.5
    there = convert(output, z, level, path, kind)
    back = convert(getattr(there, other), z, level, path, other)
    torch.testing.assert_close(getattr(back, kind), output, rtol=0, atol=1e-5)
    torch.testing.assert_close(path.mix(there.x, there.eps, level), z, rtol=0, atol=1e-9)


@each_path
@each_kind
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_conversions_are_finite_at_both_ends_and_so_are_their_gradients(path: Path, kind: str, end: float) -> None:
    level = torch.full((1, 2), end)
    z, truth = example(path, level)
    output = getattr(truth, kind).clone().requires_grad_()
    made = convert(output, z, level, path, kind)
    sum(part.sum() for part in made).backward()
    assert all(part.isfinite().all() for part in made)
    assert output.grad.isfinite().all()


@each_path
def test_a_clean_frame_predicted_as_x_has_no_noise(path: Path) -> None:
    level = torch.zeros(1, 2)
    z, truth = example(path, level)
    made = convert(truth.x, z, level, path, "x")
    assert torch.equal(made.x, truth.x)
    assert not made.eps.any()


@each_path
@pytest.mark.parametrize(("kind", "bounded", "tau"), [("x", "eps", 0.01), ("eps", "x", 0.99)])
def test_the_floor_bounds_the_divisor(path: Path, kind: str, bounded: str, tau: float) -> None:
    level, floor = torch.full((1, 2), tau, dtype=torch.float64), 0.05
    z, truth = example(path, level)
    made = convert(getattr(truth, kind), z, level, path, kind, floor)
    share = per_frame(path.sigma(level) if kind == "x" else path.alpha(level))
    assert share.max() < floor
    torch.testing.assert_close(getattr(made, bounded), getattr(truth, bounded) * share / floor)


def test_an_unknown_form_is_an_error_that_names_the_known_ones() -> None:
    z = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="found 'noise', expected one of x, eps, v"):
        convert(z, z, torch.zeros(1, 1), RectifiedFlow(), "noise")
