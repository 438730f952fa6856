"""Blocks compiled from outside: the same numbers, the same names, a few graphs for any number of buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.conftest import tiny
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.compile import compile_blocks
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint

# Frames, rows and columns; an image is a bucket too.
BUCKETS = [(3, 8, 20), (5, 8, 8), (2, 16, 8), (6, 8, 16), (1, 16, 16), (2, 12, 20), (3, 20, 12), (8, 8, 4)]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget graphs and counts of other tests; under pytest's log torch would write down each graph many times."""
    torch._logging._internal.trace_log.propagate = False
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def denoiser(*axes: str, depth: int = 2, padding: str = "masked") -> SpaceTimeTransformer:
    """Return a network with weights that matter everywhere; the same each time."""
    how = {"axes": axes, "text_width": 8, "padding": padding}
    network = SpaceTimeTransformer(patch=(1, 4, 4), width=16, depth=depth, heads=2, **how)
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    return network


def answer(network: nn.Module, b: int, t: int, h: int, w: int) -> tuple[Tensor, list[Tensor]]:
    """Return the output for a batch of this size, and the gradients of its square."""
    torch.manual_seed(1)
    z, tau, text = torch.randn(b, 3, t, h, w), torch.rand(b, t), torch.randn(b, 7, 8)
    network.zero_grad()
    out = network(z, tau, text, torch.ones(b, 7, dtype=torch.bool), torch.full((b,), 8.0))
    out.square().mean().backward()
    return out, [p.grad for p in network.parameters()]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("padding", ["masked", "learned"])
def test_compiled_blocks_give_the_same_numbers_under_the_same_names(padding: str) -> None:
    plain, compiled = (denoiser("space", "time", depth=4, padding=padding) for _ in range(2))
    names = list(compiled.state_dict())
    compile_blocks(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == names
    wanted, found = answer(plain, 2, 3, 8, 20), answer(compiled, 2, 3, 8, 20)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    for p, q in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert graphs() == 2, "blocks of one kind share a graph"
    assert not counters["graph_break"]


def test_eight_buckets_share_a_graph_and_images_have_another() -> None:
    plain, compiled = denoiser("space"), denoiser("space")
    # A graph is counted where dynamo has captured it, whatever is made of it then.
    compile_blocks(compiled, backend="eager", dynamic=True)
    for bucket in [*BUCKETS, *BUCKETS]:
        wanted, found = answer(plain, 2, *bucket), answer(compiled, 2, *bucket)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert graphs() == 2


def test_training_with_compiled_blocks_ends_with_the_weights_of_plain_ones_and_sampling_reads_them(
    world_dataset: Path, cwd: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    compiled = ["compile=blocks", "compile.backend=aot_eager"]
    for name, more in {"plain": [], "compiled": compiled}.items():
        status, _, err = call("train", *tiny(world_dataset), "trainer.max_steps=3", f"name={name}", *more)
        assert status == 0, err
    assert graphs() > 0
    wanted, found = (load_file(latest_checkpoint(Path("runs", name)) / AVERAGE) for name in ("plain", "compiled"))
    assert wanted.keys() == found.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-5)
    status, _, err = call("sample", "runs/compiled", "prompts=[a red ball]", "steps=1")
    assert status == 0, err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compile.backend=induktor", "compile.backend: found 'induktor', expected one of"),
        ("+compile.modes=default", "found no key 'compile.modes'; did you mean 'mode'?"),
    ],
)
def test_a_setting_that_does_not_exist_is_one_line_before_the_first_step(
    override: str,
    message: str,
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    status, _, err = call("train", *tiny(world_dataset), "compile=blocks", override)
    assert status == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"compile\.backend: found no g\+\+ or clang\+\+"):
        compile_blocks(denoiser("space"))
