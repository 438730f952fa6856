"""The linear layer with a backward pass of its own, beside torch's, in bfloat16 and under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from videodiff.denoiser import linear
from videodiff.denoiser.linear import Linear, gains, transposed
from videodiff.denoiser.target import targeting


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 5), (130, 129)])
def test_a_transposed_copy_lies_as_it_is_read(shape: tuple[int, int]) -> None:
    x = randn(*shape)
    assert torch.equal(transposed(x), x.T)
    assert transposed(x).is_contiguous()


@pytest.mark.parametrize(
    ("outputs", "inputs", "expected"),
    [(4608, 1152, True), (1152, 1152, True), (512, 2048, True), (512, 512, False), (256, 8192, False)],
)
def test_wide_layers_gain(outputs: int, inputs: int, expected: bool) -> None:
    assert gains(outputs, inputs) is expected


def both(layer: Linear, x: Tensor, autocast: bool) -> list[list[Tensor]]:
    """Return a value and its gradients by the layer and by torch's own backward pass."""
    found = []
    for device in ("cpu", "cuda"):
        with targeting(device), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            made = layer(x)
        wanted = [p for p in (x, *layer.parameters()) if p.requires_grad]
        found.append([made.detach(), *torch.autograd.grad(made, wanted, randn(*made.shape, seed=3).to(made.dtype))])
    return found


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("weight", "bias")])
def test_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, autocast: bool, frozen: tuple[str, ...]) -> None:
    monkeypatch.setattr(linear, "NARROW", 1)
    monkeypatch.setattr(linear, "LEAST", 1)
    calls = []
    monkeypatch.setattr(linear, "transposed", lambda x: calls.append(x.dtype) or transposed(x))
    layer, x = Linear(40, 24), randn(2, 3, 50, 40).requires_grad_("x" not in frozen)
    if not autocast:
        layer, x = layer.bfloat16(), x.detach().bfloat16().requires_grad_("x" not in frozen)
    for name, weight in layer.named_parameters():
        weight.requires_grad_(name not in frozen)
    ours, plain = both(layer, x, autocast)
    # Nothing is copied where the layer does not learn.
    assert calls == ([] if "bias" in frozen else [torch.bfloat16])
    for one, other in zip(ours, plain, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        # bfloat16 keeps eight bits.
        assert (one - other).double().norm() <= 2**-8 * other.double().norm()


def test_torch_computes_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(linear.Product, "apply", lambda x, *_: calls.append(x.shape))
    wide, narrow = Linear(1024, 1024), Linear(64, 64).bfloat16()
    wide(randn(2, 1024))
    narrow(randn(2, 64).bfloat16())
    with targeting("cuda"):
        wide.bfloat16()(randn(2, 1024).bfloat16())
    assert calls == []
    wide.bfloat16()(randn(2, 1024).bfloat16())
    assert calls == [(2, 1024)]


def test_the_layer_has_the_names_and_the_start_of_torch_s() -> None:
    torch.manual_seed(0)
    ours = Linear(6, 5).state_dict()
    torch.manual_seed(0)
    plain = nn.Linear(6, 5).state_dict()
    assert list(ours) == list(plain)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
