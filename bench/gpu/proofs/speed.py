"""XL and L forward and backward, eager and compiled, beside diffusers' Latte with as many blocks, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu.check import GIB, Check, in_use_gib, peak_gib, relative_error, release, settle, wait
from gpu.proofs.ceilings import peak_tflops
from subjects.latte import build_latte
from torch import Tensor, nn

from videodiff.denoiser.transformer import SpaceTimeTransformer
from videodiff.parallel.compile import compile_blocks
from videodiff.parallel.recompute import recompute_blocks
from videodiff.planning.flops import forward_and_backward, network_of

TEXT, TEXT_WIDTH = 120, 4096
# Turns of each work, and how many steps of it are timed in a turn, unless one takes longer than a second.
TURNS, STEPS = 4, 3


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
    """Measure XL in turns with Latte, then so for a long clip, then L alone."""
    backend = "eager" if check.tiny else "inductor"
    for size in (XL, XL._replace(frames=64, side=64), L):
        if check.tiny:
            size = size._replace(width=32, depth=2, heads=2, frames=size.frames // 8, side=size.side // 8)
        if check.left < (0 if check.tiny else 60):
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
    ours = network(check, size, recompute)
    clips = most_clips(check, size, ours)
    inputs = batch(check, size, clips)
    name = f"{title(size)}, {clips} clips{', blocks recomputed' if recompute else ''}"
    check.figure(f"{name}: parameters, million", sum(p.numel() for p in ours.parameters()) / 1e6)
    works: dict[str, Callable[[], Any]] = {"eager": partial(step, ours, inputs)}
    if compiled:
        twin = partial(compiled_twin, check, size, ours, inputs, backend, recompute)
        check.part(f"{name}, compiled", lambda: works.update(twin()))
    if size.name == "XL":
        theirs = partial(latte, check, size, clips, recompute, compiled, backend)
        check.part(f"{title(size)}, Latte", lambda: works.update(theirs()))
    taken, peaks = rounds(check, works)
    shape = network_of(size.width, ("space", "time"), size.depth, patch=16, words=TEXT, text_width=TEXT_WIDTH)
    flops = forward_and_backward(*size.tokens, shape) * clips
    tokens, peak = clips * size.tokens[0] * size.tokens[1], peak_tflops(check)
    for kind, seconds in taken.items():
        check.figure(f"{name}, {kind}: tokens a second", tokens / seconds)
        if "Latte" not in kind:
            check.figure(f"{name}, {kind}: TFLOP/s", flops / seconds / 1e12)
            check.figure(f"{name}, {kind}: MFU", flops / seconds / 1e12 / peak if peak else "peak not known")
        check.figure(f"{name}, {kind}: peak memory alone, GiB", peaks[kind])
    fastest = [
        min((seconds for kind, seconds in taken.items() if ("Latte" in kind) == peer), default=None)
        for peer in (True, False)
    ]
    if all(fastest):
        check.figure(f"{name}: tokens a second beside the faster Latte's", fastest[0] / fastest[1])


def compiled_twin(
    check: Check, size: Size, ours: nn.Module, inputs: dict[str, Tensor], backend: str, recompute: bool
) -> dict[str, Callable[[], Tensor]]:
    """Return a step of a network with the same weights and compiled blocks, held beside the eager one."""
    twin = network(check, size, recompute)
    twin.load_state_dict(ours.state_dict())
    compile_blocks(twin, backend=backend, dynamic=False)
    error = relative_error(step(twin, inputs), step(ours, inputs))
    check.figure(f"{title(size)}: output compiled beside eager, relative error", error)
    check.hold(f"{title(size)}: compiled blocks give the eager output within 2e-2", error < 2e-2, f"{error:.3g}")
    return {"compiled": partial(step, twin, inputs)}


def network(check: Check, size: Size, recompute: bool = False) -> SpaceTimeTransformer:
    """Return our network in bfloat16, as ZeRO trains it, with weights that matter everywhere."""
    with torch.device(check.device):
        made = SpaceTimeTransformer(
            4, (1, 2, 2), size.width, size.depth, size.heads, text_width=TEXT_WIDTH, gate=0.1, padding="learned"
        )
        nn.init.normal_(made.head.weight, std=0.02)
    recompute_blocks(made, "full" if recompute else "none")
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


def step(made: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Run forward and backward; return the output."""
    made.zero_grad()
    out = made(**inputs)
    out.square().mean().backward()
    return out.detach()


def most_clips(check: Check, size: Size, made: nn.Module) -> int:
    """Return half of the largest batch that fits the memory of the device: room for the models that take turns.

    No batch that is tried has more than 2^17 tokens: beyond, a step of XL takes seconds.
    """
    clip = size.tokens[0] * size.tokens[1]
    for clips in (2,) if check.tiny else [n for n in (16, 8, 4, 2, 1) if n * clip <= 2**17]:
        fits = one_step_fits(check, size, made, clips)
        # Only now nothing holds the tensors of a step that broke off: its exception did, by its frames.
        release()
        if fits:
            return clips if check.tiny else max(1, clips // 2)
    raise torch.OutOfMemoryError(f"{title(size)}: not even one clip fits")


def one_step_fits(check: Check, size: Size, made: nn.Module, clips: int) -> bool:
    """Tell whether a step of so many clips fits the memory of the device."""
    try:
        step(made, batch(check, size, clips))
        wait(check.device)
    except torch.OutOfMemoryError:
        return False
    finally:
        made.zero_grad()
    return True


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
    """Return the seconds of a step of each work, the median over turns, and its peak of memory; one that fails is out.

    A work is a `partial` whose first argument is its network.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    peaks = {}
    for number in range(1 if check.tiny else TURNS):
        if number and check.left < 15:
            check.note(f"{number} of {TURNS} turns: {check.left:.0f} s left of the proof")
            break
        for name, work in list(works.items()):
            found = check.part(f"{name}, turn {number + 1}", lambda work=work: turn(check, work))
            if found is None:
                del works[name]
            else:
                taken[name].append(found[0])
                peaks[name] = found[1]
    return {name: statistics.median(times) for name, times in taken.items() if times}, peaks


def turn(check: Check, work: Any) -> tuple[float, float]:
    """Return the seconds of a step, and the most GiB in use in a step that is not timed: it also fetches the memory."""
    network = work.args[0]
    # The other networks wait in the memory with their weights and gradients, this one begins without gradients.
    network.zero_grad()
    others = in_use_gib() - weights_gib(network)
    settle(check.device)
    begun = time.perf_counter()
    work()
    wait(check.device)
    steps = 1 if check.tiny or time.perf_counter() - begun > 1 else STEPS
    peak = peak_gib(check.device) - others
    return timed(check, work, steps), peak


def weights_gib(network: nn.Module) -> float:
    """Return the memory of the GPU that weights and buffers take, 0 where they lie on the host."""
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()) if t.is_cuda) / GIB


def timed(check: Check, work: Callable[[], Any], steps: int) -> float:
    """Return the seconds of a step, by the events of the device where there are some."""
    if not check.cuda:
        begun = time.perf_counter()
        for _ in range(steps):
            work()
        return (time.perf_counter() - begun) / steps
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / steps
