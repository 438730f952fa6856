"""What the card can do: matrix products and attention at the model's own shapes, copies; and what follows for XL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gpu.check import Check, seconds_of
from torch import Tensor

from videodiff.planning.peaks import peak_of

# Of a block of our network, by token: multiplications forward and backward in units of 14 width^2, numbers moved.
FORWARD_AND_BACKWARD, MOVED = 3, 33 * 3


def run(check: Check) -> None:
    """Measure, then derive the share of the peak that a block of XL could reach."""
    rounds = 2 if check.tiny else 7
    dtype, n = torch.bfloat16, 512 if check.tiny else 65536
    rates = []
    for width, name in ((1024, "L"), (1152, "XL")):
        width = 64 if check.tiny else width
        for inner, outer in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
            rate = product(check, n, inner, outer, rounds, dtype)
            rates += [rate] if name == "XL" else []
            check.figure(f"product {n} x {inner} x {outer} ({name}), TFLOP/s", rate)
    side = 128 if check.tiny else 8192
    best = product(check, side, side, side, rounds, dtype)
    check.figure(f"product {side} x {side} x {side}, TFLOP/s", best)
    for what, batch, heads, tokens, head in (
        ("space, 16 heads of 72", n // 256, 16, 256, 72),
        ("space, 18 heads of 64", n // 256, 18, 256, 64),
        ("space, 9 heads of 128", n // 256, 9, 256, 128),
        ("time, 16 heads of 72", n // 16, 16, 16, 72),
        ("time, 18 heads of 64", n // 16, 18, 16, 64),
    ):
        check.part(f"attention over {what}", lambda a=(what, batch, heads, tokens, head): attention(check, *a, rounds))
    for masked in (True, False):
        check.part("attention to the text", lambda masked=masked: text_attention(check, n // 4096, masked, rounds))
    copied = copy(check, rounds)
    check.figure("copy from memory to memory, GB/s read and written", copied)
    peak = peak_tflops(check)
    check.figure("peak of the data sheet, TFLOP/s", peak if peak else "not known")
    least = min(best, sum(rates) / len(rates))
    check.figure("XL: share of the peak that fused blocks could reach", reachable(least, copied) / (peak or best))


def product(check: Check, rows: int, inner: int, outer: int, rounds: int, dtype: torch.dtype) -> float:
    """Return TFLOP/s of a matrix product of random numbers."""
    a, b = (torch.randn(*shape, device=check.device).to(dtype) for shape in ((rows, inner), (inner, outer)))
    repeat = 1 if check.tiny else 10
    return 2 * rows * inner * outer / seconds_of(lambda: a @ b, check.device, rounds, repeat) / 1e12


def attention(check: Check, what: str, batch: int, heads: int, tokens: int, head: int, rounds: int) -> None:
    """Record how long attention of all tokens takes, forward and backward."""
    q, k, v, grad = (
        torch.randn(max(batch, 1), heads, tokens, head, device=check.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(4)
    )
    repeat = 1 if check.tiny else 10
    seconds = seconds_of(lambda: forward_and_backward(q, k, v, grad.detach()), check.device, rounds, repeat)
    check.figure(f"attention over {what}, ns a token forward and backward", 1e9 * seconds / (max(batch, 1) * tokens))


def text_attention(check: Check, batch: int, masked: bool, rounds: int) -> None:
    """Record how long the tokens of XL take to attend to 226 words, forward and backward, with a mask and without."""
    batch, tokens, words = (1, 64, 8) if check.tiny else (batch, 4096, 226)
    q, k, v = (
        torch.randn(batch, 16, length, 72, device=check.device, dtype=torch.bfloat16, requires_grad=True)
        for length in (tokens, words, words)
    )
    grad, repeat = torch.randn_like(q), 1 if check.tiny else 10
    mask = torch.arange(words, device=check.device) < words // 4
    mask = mask.expand(batch, 1, 1, words) if masked else None
    seconds = seconds_of(lambda: forward_and_backward(q, k, v, grad, mask), check.device, rounds, repeat)
    how = "with a mask" if masked else "without a mask"
    check.figure(f"attention to the text {how}, ns a token forward and backward", 1e9 * seconds / (batch * tokens))


def forward_and_backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the gradients of attention, where `grad` is that of its output; nothing is left for the next call."""
    return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), (q, k, v), grad)


def copy(check: Check, rounds: int) -> float:
    """Return GB/s of a copy within the memory of the device, bytes read and written."""
    source = torch.empty((2**24 if check.tiny else 2**32), dtype=torch.uint8, device=check.device).random_()
    target = torch.empty_like(source)
    return 2 * len(source) / seconds_of(lambda: target.copy_(source), check.device, rounds) / 1e9


def peak_tflops(check: Check) -> float | None:
    """Return the peak of this card by its data sheet, None where it is not in the table."""
    peak = peak_of(torch.cuda.get_device_name(), half=True) if check.cuda else None
    return peak and peak / 1e12


def reachable(tflops: float, gigabytes: float, width: int = 1152) -> float:
    """Return TFLOP/s of blocks whose products run at `tflops` and whose rest only moves its numbers, two bytes each."""
    flops = FORWARD_AND_BACKWARD * 28 * width**2
    seconds = flops / (tflops * 1e12) + MOVED * width * 2 / (gigabytes * 1e9)
    return flops / seconds / 1e12
