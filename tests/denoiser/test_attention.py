"""Attention against softmax written out, with RMS norm and rotation by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from videodiff.denoiser import attention
from videodiff.denoiser.attention import SPLIT, CrossAttention, HeadNorm, SelfAttention, at_once, backend, in_parts
from videodiff.denoiser.position import rotary_table
from videodiff.denoiser.target import targeting

WIDTH, HEADS, TOKENS = 24, 2, 5
HEAD = WIDTH // HEADS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module) -> nn.Module:
    """Give every parameter, the norms' weights too, a value of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Rotate each token (n, HEAD) to its place on one axis, pair by pair, by a matrix written out."""
    n = HEAD // 2
    angle = places[:, None] * 100.0 ** (-torch.arange(n) / (n - 1))
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(1)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weight = (q @ k.T / math.sqrt(q.shape[-1])).exp()
    return weight / weight.sum(-1, keepdim=True) @ v


def heads(x: Tensor) -> list[Tensor]:
    return list(x.split(HEAD, dim=-1))


def test_self_attention_is_softmax_over_rotated_normed_queries_and_keys() -> None:
    module, x, places = awake(SelfAttention(WIDTH, HEADS)), randn(2, TOKENS, WIDTH), torch.arange(TOKENS) * 0.7
    made = module(x[:, None], rotary_table(places[:, None], HEAD))[:, 0]
    for clip in range(2):
        q, k, v = linear(module.qkv, x[clip]).split(WIDTH, dim=-1)
        attended = [
            softmax_attention(turned(normed(module.norm_q, q), places), turned(normed(module.norm_k, k), places), v)
            for q, k, v in zip(heads(q), heads(k), heads(v), strict=True)
        ]
        torch.testing.assert_close(made[clip], linear(module.out, torch.cat(attended, -1)), rtol=0, atol=1e-5)


def test_cross_attention_is_softmax_over_the_words_alone() -> None:
    module, x = awake(CrossAttention(WIDTH, HEADS)), randn(2, TOKENS, WIDTH)
    text, mask = randn(2, 4, WIDTH, seed=2), torch.tensor([[True, True, True, False], [True, False, False, False]])
    made = module(x[:, None], text, mask)[:, 0]
    for clip in range(2):
        q, (k, v) = linear(module.q, x[clip]), linear(module.kv, text[clip, mask[clip]]).split(WIDTH, dim=-1)
        attended = [
            softmax_attention(normed(module.norm_q, q), normed(module.norm_k, k), v)
            for q, k, v in zip(heads(q), heads(k), heads(v), strict=True)
        ]
        torch.testing.assert_close(made[clip], linear(module.out, torch.cat(attended, -1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-3, 1.0])
def test_heads_are_normed_in_float32_however_small_they_are(size: float, autocast: bool) -> None:
    norm, places = awake(HeadNorm(HEAD, eps=1e-6)), torch.arange(TOKENS) * 0.7
    x = (size * randn(TOKENS, HEAD)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = norm(x[None, None], rotary_table(places[:, None], HEAD))
    formula = turned(normed(norm, x), places)[None, None]
    found, wanted = ([one, *torch.autograd.grad(one.sum(), [x, norm.weight])] for one in (made, formula))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_self_attention_sees_differences_of_places_alone(axes: int) -> None:
    module, x, places = awake(SelfAttention(WIDTH, HEADS)), randn(1, TOKENS, WIDTH), randn(TOKENS, axes, seed=3)
    here, moved, stretched = (module(x[:, None], rotary_table(at, HEAD)) for at in (places, places + 3.0, places * 2.0))
    torch.testing.assert_close(here, moved, rtol=0, atol=1e-5)
    assert (here - stretched).abs().max() > 1e-3


def derivatives(made: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """Return a value that all of an output has a part in, and its gradients."""
    upstream = randn(*made.shape, seed=7).to(made.dtype)
    return [made.detach(), *torch.autograd.grad(made, wanted, upstream)]


def near(found: list[Tensor], expected: list[Tensor], most: float = 3e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).double().norm() <= most * (1 + other.double().norm())


@pytest.mark.parametrize("axes", SPLIT)
@pytest.mark.parametrize(("t", "s"), [(1, 1), (3, 20), (17, 2), (4, 80)])
def test_attention_by_products_is_the_plain_one_with_its_gradients(axes: str, t: int, s: int) -> None:
    module, x = awake(SelfAttention(WIDTH, HEADS, axes)), randn(2, t, s, WIDTH).requires_grad_()
    count = {"space": s, "time": t, "spacetime": t * s}[axes]
    rotary = rotary_table(randn(count, 2, seed=5), HEAD)
    found = derivatives(module(x, rotary), [x, *module.parameters()])
    with targeting("cuda"):
        near(found, derivatives(module(x, rotary), [x, *module.parameters()]))


@pytest.mark.parametrize("words", [1, 5, 20, 70])
@pytest.mark.parametrize("padded", [False, True])
def test_text_by_products_is_the_plain_one_with_its_gradients(words: int, padded: bool) -> None:
    module, x = awake(CrossAttention(WIDTH, HEADS)), randn(3, 2, 5, WIDTH).requires_grad_()
    text, mask = randn(3, words, WIDTH, seed=2).requires_grad_(), torch.ones(3, words, dtype=torch.bool)
    if padded:
        mask[1, words // 2 + 1 :] = False
        mask[2] = False
        torch.testing.assert_close(module(x, text, mask)[2], module.out.bias.expand(2, 5, WIDTH), rtol=0, atol=0)
    found = derivatives(module(x, text, mask), [x, text, *module.parameters()])
    with targeting("cuda"):
        near(found, derivatives(module(x, text, mask), [x, text, *module.parameters()]))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("keys", [18, 90, 300])
def test_attention_of_a_cpu_in_bfloat16_is_nearer_to_float32_than_the_fused_one(keys: int, autocast: bool) -> None:
    module, x = awake(SelfAttention(WIDTH, HEADS)), randn(2, 3, keys // 3, WIDTH)
    rotary = rotary_table(randn(keys, 2), HEAD)
    wanted = module(x, rotary).detach()
    if not autocast:
        module, x = module.bfloat16(), x.bfloat16()
    errors = []
    for device in ("cpu", "cuda"):
        with targeting(device), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            made = module(x, rotary)
        made.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())
        errors.append(float((made.detach() - wanted).norm() / wanted.norm()))
    assert errors[0] < 1.1 * errors[1] < 0.02


def test_a_forward_mode_derivative_is_that_of_a_difference() -> None:
    module, rotary = awake(SelfAttention(WIDTH, HEADS)), rotary_table(randn(6, 2), HEAD)
    x, along = randn(1, 2, 3, WIDTH), randn(1, 2, 3, WIDTH, seed=8)
    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(lambda x: module(x, rotary), (x,), (along,))
    near, far = ((module(x + h * along, rotary) - module(x - h * along, rotary)) / (2 * h) for h in (0.01, 0.02))
    # Of the fourth order: of the second alone, the error grows with the weights, which are drawn anew each time.
    torch.testing.assert_close(found, (4 * near - far) / 3, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("device", "head_width", "length", "dtype", "expected"),
    [
        ("cpu", 32, 8, torch.float32, "products"),
        ("cpu", 32, 64, torch.float32, "products"),
        ("cpu", 72, 72, torch.float32, "products"),
        ("cpu", 32, 65, torch.float32, "fused"),
        ("cpu", 72, 256, torch.float32, "fused"),
        ("cpu", 72, 256, torch.bfloat16, "products"),
        ("cpu", 72, 257, torch.bfloat16, "fused"),
        ("cuda", 64, 16, torch.bfloat16, "fused"),
    ],
)
def test_short_sequences_on_a_cpu_are_attended_by_products(
    device: str, head_width: int, length: int, dtype: torch.dtype, expected: str
) -> None:
    assert backend(device, head_width, length, dtype) == expected


def test_the_number_of_keys_and_the_type_of_the_values_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(attention, "backend", lambda *asked: seen.append(asked) or "products")
    attention.attend(randn(1, HEADS, 300, HEAD), randn(1, HEADS, 20, HEAD), randn(1, HEADS, 20, HEAD).bfloat16())
    assert seen == [("cpu", HEAD, 20, torch.bfloat16)]


def test_the_operations_of_another_device_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(attention, "by_products", lambda q, k, v, mask: chosen.append("products") or v)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda q, k, v, **_: chosen.append("fused") or v)
    q = torch.ones(1, HEADS, TOKENS, HEAD)
    attention.attend(q, q, q)
    with targeting("cuda"):
        attention.attend(q, q, q)
        with targeting("cpu"):
            attention.attend(q, q, q)
        attention.attend(q, q, q)
    attention.attend(q, q, q)
    assert chosen == ["products", "fused", "products", "fused", "products"]


def noted(work: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[str]]:
    """Return compiled work, and a list that will hold the names of the operations that the compiler is given."""
    called: list[str] = []

    def note(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(work, backend=note, fullgraph=True), called


@pytest.mark.parametrize(("words", "fused"), [(9, False), (64, False), (65, True)])
def test_compiled_attention_to_few_words_is_made_of_products_and_is_the_plain_one(words: int, fused: bool) -> None:
    module, x = awake(CrossAttention(WIDTH, HEADS)), randn(3, 2, 5, WIDTH).requires_grad_()
    text, mask = randn(3, words, WIDTH, seed=2).requires_grad_(), torch.ones(3, words, dtype=torch.bool)
    mask[1, words // 2 :], mask[2] = False, False
    compiled, called = noted(module)
    made = compiled(x, text, mask)
    assert any("scaled_dot_product" in name for name in called) == fused, called
    torch.testing.assert_close(made[2], module.out.bias.expand(2, 5, WIDTH), rtol=0, atol=0)
    found = derivatives(made, [x, text, *module.parameters()])
    with targeting("cuda"):
        near(found, derivatives(module(x, text, mask), [x, text, *module.parameters()]))


def test_compiled_attention_in_bfloat16_takes_the_fused_kernel() -> None:
    q = randn(1, HEADS, TOKENS, HEAD)
    compiled, called = noted(attention.attend)
    compiled(q, q, q.bfloat16())
    assert any("scaled_dot_product" in name for name in called), called


def test_sequences_on_cuda_are_as_many_as_its_kernels_can_count() -> None:
    # Frames of a video network for which flash attention's backward pass read beyond its memory: 16 heads of 72 and 15
    # frames are padded to 96 and 128, and 2^31 / (16 x 96 x 128) is 10,922.7.
    assert at_once(16, 15, 72) == 10_922
    assert at_once(4, 10_496, 128) == 399, "400 were seen to fail"
    assert at_once(1, 2, 8) == 65_535, "the rows of a grid"
    assert at_once(64, 2**20, 256) == 1, "one sequence cannot be split"


@pytest.mark.parametrize("most", [3, 4, 8])
def test_attention_in_parts_is_the_whole_one_with_its_gradients(most: int) -> None:
    given = [randn(8, 2, 5, 4, seed=seed) for seed in range(3)]
    whole, parts = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    wanted, made = F.scaled_dot_product_attention(*whole), in_parts(*parts, most)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6)
    weight = randn(8, 2, 5, 4, seed=4)
    expected, found = (torch.autograd.grad((y * weight).sum(), x) for y, x in ((wanted, whole), (made, parts)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
