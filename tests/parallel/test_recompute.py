"""Blocks recomputed from outside: the same numbers to the bit, the same names, less that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy

from tests.conftest import tiny
from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel import recompute
from videodiff.parallel.compile import compile_blocks
from videodiff.parallel.recompute import recompute_blocks
from videodiff.training.state.checkpoint import AVERAGE, latest_checkpoint

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"level": "none"},
    "selective": {"level": "selective"},
    "full": {"level": "full"},
    "every third": {"level": "full", "every": 3},
    "offload": {"level": "full", "offload": True},
    "selective offload": {"level": "selective", "offload": True},
}
DEPTH = 4


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._logging._internal.trace_log.propagate = False
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def denoiser(name: str, axes: tuple[str, ...] = ("space", "time", "spacetime")) -> SpaceTimeTransformer:
    """Return a network with weights that matter everywhere, the same each time, recomputed by these settings."""
    network = SpaceTimeTransformer(patch=(1, 4, 4), width=16, depth=DEPTH, heads=2, axes=axes, text_width=8)
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    names = list(network.state_dict())
    recompute_blocks(network, **SETTINGS[name])
    assert list(network.state_dict()) == names
    return network


def answer(network: nn.Module) -> tuple[Tensor, list[Tensor], int]:
    """Return the output for a batch, the gradients of its square, and how many bytes autograd saved for them."""
    torch.manual_seed(1)
    z, tau, text = torch.randn(2, 3, 3, 8, 20), torch.rand(2, 3), torch.randn(2, 7, 8)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = network(z, tau, text, torch.ones(2, 7, dtype=torch.bool), torch.full((2,), 8.0))
    out.square().mean().backward()
    return out, [p.grad for p in network.parameters()], sum(saved.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradients_are_the_same_to_the_bit(name: str) -> None:
    wanted, found = answer(denoiser("none")), answer(denoiser(name))
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(p, q) for p, q in zip(found[1], wanted[1], strict=True))


def test_compiled_blocks_are_recomputed_too(fresh: None) -> None:
    wanted, compiled = answer(denoiser("none", ("time",))), denoiser("selective offload", ("time",))
    compile_blocks(compiled, backend="aot_eager")
    found = answer(compiled)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    for p, q in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_less_is_saved_the_more_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    plain = recompute.policy

    def counting(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        # Autograd's hooks do not see the outputs that selective recompute keeps by itself.
        decision = plain(context, operation, *args, **kwargs)
        if decision == CheckpointPolicy.MUST_SAVE and not context.is_recompute:
            out = context.op_output
            kept.append(sum(t.nbytes for t in (out if isinstance(out, tuple) else [out]) if isinstance(t, Tensor)))
        return decision

    monkeypatch.setattr(recompute, "policy", counting)
    saved = {name: answer(denoiser(name))[2] for name in ("none", "full", "every third")}
    saved["selective"] = answer(denoiser("selective"))[2] + sum(kept)
    # A block multiplies by seven weights, and attends twice by two products each.
    assert len(kept) == 11 * DEPTH
    assert saved["full"] < saved["every third"] < saved["none"]
    assert saved["full"] < saved["selective"] < saved["none"]
    # A recomputed block keeps its tokens, of b t s d floats, and what all blocks share.
    tokens = 2 * 3 * 10 * 16 * 4
    assert saved["full"] < 0.15 * saved["none"] + DEPTH * tokens


def test_only_the_tokens_of_each_block_wait_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []

    class Watched(save_on_cpu):
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda t: (moved.append(tuple(t.shape)), pack(t.clone()))[1]

    monkeypatch.setattr(recompute, "save_on_cpu", Watched)
    wanted, found = answer(denoiser("none")), answer(denoiser("offload"))
    assert moved == [(2, 3, 10, 16)] * DEPTH
    assert all(torch.equal(p, q) for p, q in zip(found[1], wanted[1], strict=True))


def test_a_block_that_fails_leaves_no_hooks_behind() -> None:
    network = denoiser("offload")
    with pytest.raises(IndexError, match="too many indices"):
        network.blocks[0](torch.zeros(1, 1, 1, 3, requires_grad=True), *[torch.zeros(1)] * 4)
    moved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: (moved.append(t), t)[1], lambda t: t):
        (torch.ones(1, requires_grad=True) ** 2).sum()
    assert moved, "the hooks of the failed block are still on top"


def test_training_with_recompute_ends_with_the_same_weights_and_goes_on_without(
    world_dataset: Path, cwd: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    recipe = [*tiny(world_dataset), "schedule=constant"]
    for name, steps, more in (("plain", 3, ()), ("again", 2, ("recompute=full", "recompute.every=2"))):
        status, _, err = call("train", *recipe, f"trainer.max_steps={steps}", f"name={name}", *more)
        assert status == 0, err
    status, _, err = call("train", "resume=runs/again", "trainer.max_steps=3", "recompute=none")
    assert status == 0, err
    wanted, found = (load_file(latest_checkpoint(Path("runs", name)) / AVERAGE) for name in ("plain", "again"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_from_every_block_to_the_first_one_alone_may_be_recomputed() -> None:
    for every in (1, DEPTH):
        recompute.check("full", every, DEPTH, offload=False)
    for every in (0, DEPTH + 1):
        with pytest.raises(ValueError, match=f"recompute.every: found {every}, expected 1 to 4, the number of blocks"):
            recompute.check("full", every, DEPTH, offload=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recompute.every=9", "recompute.every: found 9, expected 1 to 2, the number of blocks"),
        ("recompute.level=fool", "found 'fool', expected one of none, selective, full"),
        ("recompute.level=none recompute.offload=true", "recompute.offload: found true with nothing recomputed"),
        ("+recompute.evry=2", "found no key 'recompute.evry'; did you mean 'every'?"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line_before_the_first_step(
    override: str,
    message: str,
    world_dataset: Path,
    cwd: Path,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    status, _, err = call("train", *tiny(world_dataset), "recompute=full", *override.split())
    assert (status, err.count("\n"), Path("runs").exists()) == (1, 1, False)
    assert message in err
