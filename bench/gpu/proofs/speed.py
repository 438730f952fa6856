"""XL and L forward and backward, eager and compiled, beside diffusers' Latte with as many blocks, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu.check import Check, peak_gib, relative_error, settle, wait
from gpu.proofs.ceilings import peak_tflops
from subjects.latte import build_latte
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.compile import compile_blocks
from videodiff.planning.flops import forward_and_backward, network_of

TEXT, TEXT_WIDTH = 120, 4096


class Size(NamedTuple):
    """A network of conf/model, and a clip as latents of 8 x 8 pixels to 4 numbers."""

    name: str
    width: int
    depth: int
    heads: int
    frames: int
    side: int

    @property
    def tokens(self) -> tuple[int, int]:
        return self.frames, (self.side // 2) ** 2


XL, L = Size("XL", 1152, 28, 16, 16, 32), Size("L", 1024, 24, 16, 16, 32)


def run(check: Check) -> None:
    """Measure XL in turns with Latte, then L, then the long clip."""
    backend = "eager" if check.tiny else "inductor"
    for size in (XL, L, XL._replace(frames=64, side=64)):
        if check.tiny:
            size = size._replace(width=32, depth=2, heads=2, frames=size.frames // 8, side=size.side // 8)
        if check.left < (0 if check.tiny else 40):
            check.note(f"{title(size)}: passed over: {check.left:.0f} s left of the proof")
            continue
        long = size.frames * size.side > 32 * 32 or (check.tiny and size.side == 8)
        # A compiled graph takes seconds even where it is tiny: one is enough to see that it is made and right.
        compiled = not check.tiny or (size.name == "XL" and not long)
        gib = 0 if check.tiny else 24
        check.part(title(size), lambda s=size, w=long, c=compiled: in_turns(check, s, backend, w, c), gib)


def title(size: Size) -> str:
    return f"{size.name} {size.frames} x {8 * size.side} x {8 * size.side}"


def in_turns(check: Check, size: Size, backend: str, recompute: bool, compiled: bool) -> None:
    """Measure our network and Latte, eager and compiled, some steps each in turn."""
    torch.manual_seed(0)
    ours = network(check, size)
    works: dict[str, Callable[[], Any]] = {}
    clips = most_clips(check, partial(step, ours, size, recompute=recompute))
    inputs = batch(check, size, clips)
    name = f"{title(size)}, {clips} clips{', blocks recomputed' if recompute else ''}"
    check.figure(f"{name}: parameters, million", sum(p.numel() for p in ours.parameters()) / 1e6)
    works["eager"] = partial(step, ours, size, inputs, recompute=recompute)
    # Of the first call, which warms up.
    wanted = works["eager"]()
    if compiled:
        twin = network(check, size)
        twin.load_state_dict(ours.state_dict())
        compile_blocks(twin, backend=backend, dynamic=False)
        works["compiled"] = partial(step, twin, size, inputs, recompute=recompute)
        found = works["compiled"]()
        error = relative_error(found, wanted)
        check.figure(f"{name}: output compiled beside eager, relative error", error)
        check.hold(f"{name}: compiled blocks give the eager output within 2e-2", error < 2e-2, f"{error:.3g}")
    check.part(f"{title(size)}, Latte", lambda: works.update(latte(check, size, clips, recompute, compiled, backend)))
    taken, peaks = rounds(check, works)
    shape = network_of(size.width, ("space", "time"), size.depth, patch=16, words=TEXT, text_width=TEXT_WIDTH)
    flops = forward_and_backward(*size.tokens, shape) * clips
    tokens, peak = clips * size.tokens[0] * size.tokens[1], peak_tflops(check)
    for kind, seconds in taken.items():
        check.figure(f"{name}, {kind}: tokens a second", tokens / seconds)
        if "Latte" not in kind:
            check.figure(f"{name}, {kind}: TFLOP/s", flops / seconds / 1e12)
            check.figure(f"{name}, {kind}: MFU", flops / seconds / 1e12 / peak if peak else "peak not known")
        check.figure(f"{name}, {kind}: peak memory, GiB", peaks[kind])
    best = min((kind for kind in taken if "Latte" not in kind), key=taken.get)
    latte_times = [seconds for kind, seconds in taken.items() if "Latte" in kind]
    if latte_times:
        check.figure(f"{name}: tokens a second beside the faster Latte's", min(latte_times) / taken[best])


def network(check: Check, size: Size) -> SpaceTimeTransformer:
    """Return our network in bfloat16, as ZeRO trains it, with weights that matter everywhere."""
    with torch.device(check.device):
        made = SpaceTimeTransformer(4, (1, 2, 2), size.width, size.depth, size.heads, text_width=TEXT_WIDTH, gate=0.1)
        nn.init.normal_(made.head.weight, std=0.02)
    return made.to(torch.bfloat16)


def batch(check: Check, size: Size, clips: int) -> dict[str, Tensor]:
    generator = torch.Generator(check.device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=check.device)
    return {
        "z": draw(clips, 4, size.frames, size.side, size.side),
        "tau": torch.rand(clips, size.frames, generator=generator, device=check.device),
        "text": draw(clips, TEXT, TEXT_WIDTH),
        "text_mask": torch.ones(clips, TEXT, dtype=torch.bool, device=check.device),
        "fps": torch.full((clips,), 8.0, device=check.device),
    }


def step(made: nn.Module, size: Size, inputs: dict[str, Tensor], recompute: bool) -> Tensor:
    """Run forward and backward, with the blocks recomputed in between or not; return the output."""
    made.zero_grad()
    plain = [block.forward for block in made.blocks]
    if recompute:
        for block, forward in zip(made.blocks, plain, strict=True):
            block.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        out = made(**inputs)
        out.square().mean().backward()
    finally:
        for block, forward in zip(made.blocks, plain, strict=True):
            block.forward = forward
    return out.detach()


def most_clips(check: Check, work: Callable[..., Any]) -> int:
    """Return the largest of some batches that fits the memory of the device."""
    size = work.args[1]
    for clips in (2,) if check.tiny else (16, 8, 4, 2, 1):
        try:
            work(batch(check, size, clips))
            wait(check.device)
        except torch.OutOfMemoryError:
            work.args[0].zero_grad()
            torch.cuda.empty_cache()
        else:
            # Room for the other models that take turns with it.
            return max(1, clips // 2) if not check.tiny else clips
    raise torch.OutOfMemoryError(f"{title(size)}: not even one clip fits")


def latte(check: Check, size: Size, clips: int, recompute: bool, compiled: bool, backend: str) -> dict[str, Any]:
    """Return a step of diffusers' Latte with as many blocks, half of them over space and half over time."""

    def build() -> nn.Module:
        with torch.device(check.device):
            made = build_latte(size.width, size.heads, size.depth, 4, size.side, 2, size.frames, TEXT_WIDTH)
        made = made.to(torch.bfloat16)
        if recompute:
            made.enable_gradient_checkpointing()
        return made

    inputs = batch(check, size, clips)
    z, text = inputs["z"].bfloat16(), inputs["text"].bfloat16()
    when = torch.full((clips,), 500, device=check.device)

    def work(made: nn.Module) -> None:
        made.zero_grad()
        made(z, when, text, return_dict=False)[0].float().square().mean().backward()

    plain = build()
    check.figure(f"{title(size)}, Latte: parameters, million", sum(p.numel() for p in plain.parameters()) / 1e6)
    works = {"Latte eager": partial(work, plain)}
    if compiled and not recompute and not check.tiny:
        fast = build()
        for block in [*fast.transformer_blocks, *fast.temporal_transformer_blocks]:
            block.compile(backend=backend, dynamic=False)
        works["Latte compiled"] = partial(work, fast)
    return works


def rounds(check: Check, works: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of a step of each, the median over turns, and the peak of memory of each."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    peaks = {}
    for name, work in list(works.items()):
        if check.part(f"{name}, first step", lambda work=work: (work(), True)) is None:
            del works[name], taken[name]
    for _ in range(1 if check.tiny else 4):
        for name, work in works.items():
            settle(check.device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if check.cuda else (None, None)
            taken[name].append(timed(work, start, end, 1 if check.tiny else 3))
            peaks[name] = peak_gib(check.device)
    return {name: statistics.median(times) for name, times in taken.items()}, peaks


def timed(work: Callable[[], Any], start: Any, end: Any, steps: int) -> float:
    """Return the seconds of a step, by the events of the device where there are some."""
    import time

    if start is None:
        begun = time.perf_counter()
        for _ in range(steps):
            work()
        return (time.perf_counter() - begun) / steps
    start.record()
    for _ in range(steps):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / steps
