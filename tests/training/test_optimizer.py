"""Optimizers against torch's own, and the average against its recursion."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.training.module import parameter_groups
from videodiff.training.optimizer import AdamW, Muon, orthogonalise

SETTINGS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
SHAPES = [(6, 4), (4, 6), (5, 5), (6, 4), (7,), (2, 3, 2)]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def weights(shapes: list[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Set the gradients of one step: noise, the same whatever the weights are."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def train(make: Make, parameters: list[nn.Parameter], steps: int = 8) -> torch.optim.Optimizer:
    optimizer = make(parameters)
    for step in range(steps):
        gradients(parameters, step)
        optimizer.step()
    return optimizer


def adamw(parameters: list[nn.Parameter]) -> AdamW:
    return AdamW(parameters, **SETTINGS, ema_decay=0.6)


def muon(parameters: list[nn.Parameter]) -> Muon:
    """Return Muon over the matrices and AdamW over the rest, as the training module groups them."""
    matrices, rest = [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]
    groups = [{"params": matrices, "matrix": True}, {"params": rest, "matrix": False, "weight_decay": 0.0}]
    return Muon(groups, **SETTINGS, momentum=0.9, ema_decay=0.6)


each_optimizer = pytest.mark.parametrize("make", [adamw, muon])


def test_the_weight_matrices_of_the_blocks_are_one_group_and_the_rest_another_without_decay() -> None:
    net = SpaceTimeTransformer(width=16, heads=2, depth=2, text_width=8, captioned=(True, False), step_rank=2)
    whole = nn.ModuleDict({"denoiser": net, "text": nn.Embedding(5, 8)})
    names, layers = {id(p): name for name, p in whole.named_parameters()}, ["attention.qkv", "attention.out"]
    layers += ["mlp.0", "mlp.2", *(f"step.{layer}.{part}" for layer in ("qkv", "up", "down") for part in (0, 1))]
    matrices = {f"denoiser.blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    matrices |= {f"denoiser.blocks.0.cross_attention.{layer}.weight" for layer in ("q", "kv", "out")}

    def grouped(*shape: Callable[[nn.Parameter], torch.Size]) -> list[tuple[bool, float | None, set[str]]]:
        groups = parameter_groups(whole.named_parameters(), *shape)
        found = [[names[id(p)] for p in group["params"]] for group in groups]
        assert all(len(set(one)) == len(one) for one in found)
        return [(g["matrix"], g.get("weight_decay"), set(one)) for g, one in zip(groups, found, strict=True)]

    rest = set(names.values()) - matrices
    assert grouped() == [(True, None, matrices), (False, 0.0, rest)]
    # Parameters that a strategy has flattened are still known by the shape that they have when whole.
    shapes = {id(p): p.shape for p in whole.parameters()}
    for p in whole.parameters():
        p.data = p.data.flatten()
    assert grouped(lambda p: shapes[id(p)]) == [(True, None, matrices), (False, 0.0, rest)]
    for name, p in whole.named_parameters():
        p.requires_grad_(name == "denoiser.head.bias")
    assert grouped() == [(False, 0.0, {"denoiser.head.bias"})]


def test_adamw_is_torchs_adamw_to_the_bit() -> None:
    ours, torchs = weights(), weights()
    train(adamw, ours)
    train(lambda parameters: torch.optim.AdamW(parameters, **SETTINGS), torchs)
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, weights(), strict=True))


def test_the_adamw_half_of_muon_is_torchs_adamw_to_the_bit() -> None:
    ours, torchs = weights(), weights()
    train(lambda parameters: Muon([{"params": parameters}], **SETTINGS), ours)
    train(lambda parameters: torch.optim.AdamW(parameters, **SETTINGS, foreach=True), torchs)
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


def test_the_matrix_half_of_muon_is_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch iterates in bfloat16 to two digits; its own arithmetic in float32 agrees with ours to rounding.
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    matrices = [shape for shape in SHAPES if len(shape) == 2]
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    ours, torchs = weights(matrices), weights(matrices)
    train(lambda parameters: Muon([{"params": parameters, "matrix": True}], **settings), ours)
    train(lambda parameters: torch.optim.Muon(parameters, **settings, adjust_lr_fn="match_rms_adamw"), torchs)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_orthogonalisation_keeps_directions_and_iterates_the_quintic_on_the_singular_values(
    shape: tuple[int, int],
) -> None:
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalise(g), u @ torch.diag_embed(s) @ vh, rtol=0, atol=1e-5)


def test_orthogonalisation_brings_singular_values_near_one() -> None:
    s = torch.logspace(-2, 0, 40, dtype=torch.float64)
    made = torch.linalg.svdvals(orthogonalise(torch.diag(s / s.norm())[None]))
    assert made.max() < 1.21
    assert made[0, :20].min() > 0.68


def test_a_zero_gradient_moves_no_matrix() -> None:
    p = weights([(4, 3)])[0]
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    Muon([{"params": [p], "matrix": True}]).step()
    assert torch.equal(p, before)


def test_a_matrix_step_has_the_size_of_an_adamw_step() -> None:
    p = weights([(32, 64)])[0]
    before = p.detach().clone()
    gradients([p], 0)
    Muon([{"params": [p], "matrix": True}], lr=0.1).step()
    # An orthogonal (r, c) matrix has the norm sqrt(min(r, c)), so an entry of about 1 / sqrt(max(r, c)).
    rms = float((p.detach() - before).square().mean().sqrt())
    assert rms == pytest.approx(0.1 * 0.2, rel=0.2)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 4)])
def test_muon_refuses_what_is_no_matrix(shape: tuple[int, ...]) -> None:
    p = weights([shape])
    gradients(p, 0)
    with pytest.raises(ValueError, match=r"Muon found a parameter of shape \(.*expected a matrix"):
        Muon([{"params": p, "matrix": True}]).step()


@each_optimizer
@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_the_average_follows_its_recursion(make: Make, decay: float) -> None:
    parameters, expected = weights(), None
    optimizer = make(parameters)
    optimizer.ema_decay = decay
    for step in range(1, 12):
        gradients(parameters, step)
        optimizer.step()
        now = [p.detach().double() for p in parameters]
        beta = min(decay, (1 + step) / (10 + step))
        expected = now if step == 1 else [beta * e + (1 - beta) * p for e, p in zip(expected, now, strict=True)]
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(optimizer.state[p]["ema"].double(), e, rtol=0, atol=1e-6)


@each_optimizer
def test_a_parameter_without_gradient_rests_and_its_average_keeps_its_own_step(make: Make) -> None:
    parameters = weights()
    optimizer = make(parameters)
    optimizer.ema_decay = 0.9999
    late, path = parameters[0], []
    for step in range(6):
        gradients(parameters, step)
        if step < 3:
            late.grad = None
        optimizer.step()
        path.append(late.detach().clone())
    assert torch.equal(path[2], weights()[0])
    expected = path[3]
    for own_step, p in ((2, path[4]), (3, path[5])):
        expected = torch.lerp(expected, p, 1 - (1 + own_step) / (10 + own_step))
    torch.testing.assert_close(optimizer.state[late]["ema"], expected, rtol=0, atol=1e-6)


@each_optimizer
def test_the_average_moves_on_steps_alone(make: Make) -> None:
    parameters = weights()
    optimizer = train(make, parameters)
    before = [optimizer.state[p]["ema"].clone() for p in parameters]
    for _ in range(3):
        sum(p.square().sum() for p in parameters).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(optimizer.state[p]["ema"], e) for p, e in zip(parameters, before, strict=True))
    gradients(parameters, 0)
    optimizer.step()
    assert not any(torch.equal(optimizer.state[p]["ema"], e) for p, e in zip(parameters, before, strict=True))


@each_optimizer
def test_the_average_is_float32_and_no_view_of_the_weight(make: Make) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        parameters = weights(dtype=dtype)
        optimizer = train(make, parameters, steps=1)
        for p in parameters:
            ema = optimizer.state[p]["ema"]
            assert ema.dtype == torch.float32
            assert torch.equal(ema, p.detach().float())
            assert ema.data_ptr() != p.data_ptr()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Save and load as a checkpoint would, without pickle's arbitrary code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_optimizer
def test_training_goes_on_to_the_bit_from_a_saved_state(make: Make) -> None:
    whole = weights()
    reference = train(make, whole, steps=7)
    first = weights()
    state = through_a_file(train(make, first, steps=3).state_dict())
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = make(second)
    resumed.load_state_dict(state)
    for step in range(3, 7):
        gradients(second, step)
        resumed.step()
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)
        assert reference.state[p].keys() == resumed.state[q].keys()
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(resumed.state[q][k])) for k, v in reference.state[p].items()
        )


@each_optimizer
def test_a_step_leaves_the_gradients_as_they_are(make: Make) -> None:
    parameters, alike = weights(), weights()
    train(make, parameters, steps=3)
    gradients(alike, 2)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(parameters, alike, strict=True))


@each_optimizer
def test_each_group_steps_at_its_own_rate(make: Make) -> None:
    parameters = weights()
    optimizer = make(parameters)
    optimizer.param_groups[0]["lr"] = 0.0
    gradients(parameters, 0)
    optimizer.step()
    frozen = {id(p) for p in optimizer.param_groups[0]["params"]}
    for p, before in zip(parameters, weights(), strict=True):
        assert torch.equal(p, before) == (id(p) in frozen)


@each_optimizer
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(make: Make) -> None:
    parameters = weights()
    optimizer = make(parameters)

    def closure() -> Tensor:
        loss = sum(p.square().sum() for p in parameters)
        loss.backward()
        return loss

    expected = math.fsum(float(p.detach().square().sum()) for p in parameters)
    assert float(optimizer.step(closure).detach()) == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(parameters[0], weights()[0])


@each_optimizer
def test_the_fused_step_is_the_plain_one_to_rounding_and_counts_without_reading_its_device(make: Make) -> None:
    plain, fused = weights(), weights()
    reference = train(make, plain)

    def make_fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        optimizer.fused = True
        return optimizer

    reads = Reads()
    with reads:
        optimizer = train(make_fused, fused)
    # The first step of a parameter is read once; after that the count is the host's own.
    assert reads.count == len(fused)
    for p, q in zip(plain, fused, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(optimizer.state[q]["ema"], reference.state[p]["ema"], rtol=1e-6, atol=1e-7)
    assert all(group.get("fused") is None for group in reference.param_groups)
    assert all(group["fused"] for group in optimizer.adamw_groups())


class Reads(TorchDispatchMode):
    """Count how often a number is read from a tensor: on a GPU each time is a wait."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class Zeros(TorchDispatchMode):
    """Count the tensors of zeros that are made."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in ("zeros", "zeros_like", "zero_")
        return function(*args, **(kwargs or {}))


@each_optimizer
def test_state_is_made_in_the_first_step_alone(make: Make) -> None:
    parameters = weights()
    optimizer, made = make(parameters), []
    for step in range(3):
        gradients(parameters, step)
        with Zeros() as zeros:
            optimizer.step()
        made.append(zeros.count)
    assert made[0] >= len(parameters)
    assert made[1:] == [0, 0]


def test_adamw_updates_matrices_by_its_one_kernel_too() -> None:
    parameters = weights()
    optimizer = AdamW([{"params": parameters, "matrix": True}], fused=True)
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    assert optimizer.param_groups[0]["fused"]
