"""Products in FP8, emulated: rounded as the format says, in the right layers, under the same names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import tiny
from videodiff.denoiser.linear import Linear
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.compile import compile_blocks
from videodiff.parallel.fp8 import check_card, check_training, multiply_in_fp8
from videodiff.parallel.recompute import recompute_blocks
from videodiff.report.run import read_run
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint

# A number of three bits after the first is rounded by a sixteenth of itself at most, by 1 / sqrt(3) of that on average.
ROUNDING = 2.0**-4
# Both factors of a product are rounded, independently of each other.
ERROR = math.sqrt(2 / 3) * ROUNDING
MATRICES = {"attention.qkv", "attention.out", "cross_attention.q", "cross_attention.out", "mlp.0", "mlp.2"}
EMULATED = ["fp8.emulate=true", "fp8.least_width=16"]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget graphs of other tests; under pytest's log torch would write down each graph many times."""
    torch._logging._internal.trace_log.propagate = False
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def denoiser(depth: int = 2, mlp_ratio: float = 4.0) -> SpaceTimeTransformer:
    """Return a network with weights that matter everywhere; the same each time."""
    network = SpaceTimeTransformer(width=32, depth=depth, heads=2, text_width=8, mlp_ratio=mlp_ratio)
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    return network


def answer(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the output for a clip of 3 x 3 x 5 tokens, and the gradients of its square in one vector."""
    torch.manual_seed(1)
    z, tau, text = torch.randn(1, 3, 3, 12, 20), torch.rand(1, 3), torch.randn(1, 7, 8)
    network.zero_grad()
    out = network(z, tau, text, torch.ones(1, 7, dtype=torch.bool), torch.full((1,), 8.0))
    out.square().mean().backward()
    return out.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def changed(network: SpaceTimeTransformer) -> list[str]:
    """Return the names of the linear layers that are no longer those of a new network."""
    layers = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    return [name for name, part in layers.items() if type(part) not in (nn.Linear, Linear)]


def rounded(x: np.ndarray, axis: int) -> np.ndarray:
    """Round as FP8 of four and three bits does, with the largest power of two along an axis that keeps 448 in range."""
    scale = 2.0 ** np.floor(np.log2(448 / np.abs(x).max(axis, keepdims=True)))
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(x * scale))), -6) - 3)
    return np.rint(x * scale / step) * step / scale


def test_all_three_products_of_a_layer_round_as_the_format_says() -> None:
    holder = nn.Module()
    holder.blocks = nn.Sequential(nn.Linear(32, 48, bias=False))
    multiply_in_fp8(holder, "rowwise", least_width=32, keep=(), emulate=True)
    generator = torch.Generator().manual_seed(0)
    # Rows of very different sizes, and a number of rows that is no multiple of 16.
    x = torch.randn(2, 5, 32, generator=generator) * 10.0 ** torch.arange(-5, 5).view(2, 5, 1)
    x.requires_grad_()
    gradient = torch.randn(2, 5, 48, generator=generator)
    layer = holder.blocks[0]
    out = layer(x)
    out.backward(gradient)
    rows, weight, back = (t.detach().double().numpy() for t in (x.flatten(0, 1), layer.weight, gradient.flatten(0, 1)))
    wanted = {
        "output": (out, rounded(rows, 1) @ rounded(weight, 1).T),
        "to input": (x.grad, rounded(back, 1) @ rounded(weight, 0)),
        "to weight": (layer.weight.grad, rounded(back, 0).T @ rounded(rows, 0)),
    }
    for name, (found, expected) in wanted.items():
        found = found.detach().reshape(expected.shape).double().numpy()
        size = np.abs(expected).max(1, keepdims=True)
        assert np.abs((found - expected) / size).max() < 1e-5, name
    assert apart(out.flatten(0, 1), nn.functional.linear(x, layer.weight).flatten(0, 1)) > ERROR / 4


@pytest.mark.parametrize("recipe", ["rowwise", "tensorwise"])
def test_the_network_answers_and_learns_within_the_rounding_and_not_without_it(recipe: str) -> None:
    plain, made = denoiser(), denoiser()
    multiply_in_fp8(made, recipe, least_width=32, emulate=True)
    # Gradients have two bits under tensorwise, and pass more layers than the output.
    for found, wanted, most in zip(answer(made), answer(plain), (2 * ERROR, 4 * ERROR), strict=True):
        assert found.isfinite().all()
        assert ERROR / 8 < apart(found, wanted) < most


def test_weights_of_zero_give_zero_and_a_gradient() -> None:
    """A new network has such weights; the scale of a row of zeros must stay finite."""
    made = SpaceTimeTransformer(width=32, depth=1, heads=2, text_width=8)
    nn.init.normal_(made.head.weight, std=0.1)
    multiply_in_fp8(made, least_width=32, emulate=True)
    out, gradients = answer(made)
    assert out.isfinite().all()
    assert gradients.isfinite().all()
    assert gradients.any()


def test_the_wide_layers_of_the_blocks_change_and_weights_and_names_do_not() -> None:
    network = denoiser()
    before = dict(network.named_parameters())
    told = multiply_in_fp8(network, least_width=32, emulate=True)
    assert changed(network) == [f"blocks.{i}.{name}" for i in range(2) for name in layers(MATRICES)]
    assert told.startswith("12 of the 14 linear layers of the blocks multiply in FP8")
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is p for name, p in before.items())
    assert list(network.state_dict()) == list(denoiser().state_dict())


def layers(names: set[str]) -> list[str]:
    """Return these names in the order of a block."""
    return [name for name, _ in denoiser(1).blocks[0].named_modules() if name in names]


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        # 32 * 1.25 = 40 is no multiple of 16.
        ({"mlp_ratio": 1.25}, {"mlp.0", "mlp.2"}),
        ({"least_width": 33}, MATRICES),
        ({"keep": ["denoiser.blocks.*.attention.*", "*kv"]}, {"attention.qkv", "attention.out"}),
    ],
)
def test_layers_that_are_narrow_or_odd_or_named_stay_as_they_are(how: dict[str, object], kept: set[str]) -> None:
    how = {"least_width": 32, **how}
    network = denoiser(1, how.pop("mlp_ratio", 4.0))
    if kept == MATRICES:
        with pytest.raises(ValueError, match=r"model\.width: found .* 32 .*expected 33 or more.*fp8\.least_width"):
            multiply_in_fp8(network, emulate=True, **how)
        return
    multiply_in_fp8(network, emulate=True, **how)
    assert changed(network) == [f"blocks.0.{name}" for name in layers(MATRICES - kept)]


def test_recomputed_and_compiled_blocks_give_the_same_numbers() -> None:
    wanted = denoiser(1)
    multiply_in_fp8(wanted, least_width=32, emulate=True)
    made = denoiser(1)
    multiply_in_fp8(made, least_width=32, emulate=True)
    recompute_blocks(made, "selective")
    for found, right in zip(answer(made), answer(wanted), strict=True):
        assert torch.equal(found, right)
    compile_blocks(made, backend="aot_eager")
    for found, right in zip(answer(made), answer(wanted), strict=True):
        # Sums in another order round a few numbers another way.
        assert apart(found, right) < ERROR / 50


REFUSED = [
    ({"stage": 3, "emulate": True}, r"strategy: found ZeRO 3 with fp8=, expected fsdp2"),
    ({"gpu": False}, r"fp8: found no CUDA device, expected 8\.9 or higher .* fp8\.emulate=true"),
    ({"compiled": False}, r"compile: found null with fp8=, expected compile=blocks"),
    ({"precision": "32-true"}, r"trainer\.precision: found 32-true with fp8=, expected bf16-mixed or bf16-true"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED)
def test_a_training_that_cannot_gain_is_refused(
    change: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    good = {"emulate": False, "compiled": True, "precision": "bf16-mixed", "stage": None, "gpu": True}
    check_training(**good)
    with pytest.raises(ValueError, match=told):
        check_training(**good | change)


def test_cards_before_ada_are_refused() -> None:
    for capability in ((8, 9), (9, 0), (10, 0), (12, 0)):
        check_card(capability)
    for capability in ((8, 0), (8, 6), (7, 5)):
        with pytest.raises(ValueError, match=rf"compute capability {capability[0]}\.{capability[1]}, expected 8\.9"):
            check_card(capability)


def test_a_run_goes_on_with_fp8_and_without_it(
    tmp_path: Path, world_dataset: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = [*tiny(world_dataset), "trainer.log_every_n_steps=1", "optimizer=muon"]
    for name, first, then in (("plain", [], []), ("into", [], EMULATED), ("out", EMULATED, [])):
        ways = [["fp8=rowwise", *words] if words else ["fp8=none"] for words in (first, then)]
        status, _, err = call("train", f"name={name}", *recipe, "trainer.max_steps=3", *ways[0])
        assert status == 0, err
        status, out, err = call("train", f"resume=runs/{name}", "trainer.max_steps=6", *ways[1])
        assert status == 0, err
        assert ("12 of the 14 linear layers of the blocks multiply in FP8" in out) == bool(then)
    curves = {name: read_run(tmp_path / "runs" / name).metrics["train/loss"][1] for name in ("plain", "into", "out")}
    weights = {name: load_file(latest_checkpoint(tmp_path / "runs" / name) / AVERAGE) for name in curves}
    for name in ("into", "out"):
        # A rounding that does not correlate with the error of an output adds its square to the loss.
        assert curves[name].tolist() == pytest.approx(curves["plain"].tolist(), rel=(1 + ERROR) ** 2 - 1)
        assert curves[name].tolist() != curves["plain"].tolist()
        assert {key: value.dtype for key, value in weights[name].items()} == {
            key: value.dtype for key, value in weights["plain"].items()
        }


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("train", ["fp8=rowwise"], "fp8: found no CUDA device, expected 8.9 or higher"),
        ("train", ["fp8=rowwise", "fp8.emulate=true"], "inputs or outputs at most with fp8=, expected 2048 or more"),
        ("train", ["fp8=tensorwise", *EMULATED, "fp8.keep=[*.kvv]"], "fp8.keep: found '*.kvv', which matches no"),
        ("train", ["fp8=rowwise", *EMULATED, "strategy=zero3"], "strategy: found ZeRO 3 with fp8=, expected fsdp2"),
        ("train", ["fp8=row"], "fp8"),
        ("plan", ["fp8=rowwise"], "fp8: found rowwise, expected none: no profile has a speed of products in FP8"),
    ],
)
def test_what_cannot_be_is_one_line(
    verb: str,
    words: list[str],
    told: str,
    tmp_path: Path,
    world_dataset: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = call(verb, *tiny(world_dataset), *words)
    assert status == 1
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs" / "run").exists()
