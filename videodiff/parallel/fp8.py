"""Linear layers of the blocks whose matrix products run in FP8, by torchao, from outside and in place.

Inputs, weights and gradients are rounded to eight bits just before each product, with scales that are computed on the
spot. Weights stay what they are, under the same names, so checkpoints, averages and optimizers do not change, and a
run may continue with FP8 or without.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import ModuleType

import torch
from torch import nn

from videodiff.printing import no_warnings_logged

# How the names of layers begin in checkpoints and patterns.
BLOCKS = "denoiser.blocks."
RECIPES = ("rowwise", "tensorwise")
NONE = "none"
# The products of a card need sides that are multiples of this; rows are padded.
UNIT = 16
# The compute capability of the first cards with such products (Ada, then Hopper).
FIRST = (8, 9)
HALF = ("bf16-mixed", "bf16-true")


def multiply_in_fp8(
    denoiser: nn.Module,
    recipe: str = "rowwise",
    least_width: int = 2048,
    keep: Sequence[str] = ("*.cross_attention.kv",),
    emulate: bool = False,
) -> str | None:
    """Let the wide linear layers of `denoiser.blocks` multiply in FP8; return one line that says how many do.

    A layer is wide if it has at least `least_width` inputs and outputs. `keep`: patterns of layers that stay as they
    are. `recipe` none: nothing changes, and no line is returned; rowwise: a scale for each row; tensorwise: one scale
    for a tensor. `emulate`: round alike, but multiply in float32, on any device.
    """
    if recipe == NONE:
        return None
    if recipe not in RECIPES:
        raise ValueError(f"fp8.recipe: found {recipe!r}, expected one of {', '.join((NONE, *RECIPES))}")
    layers = {f"{BLOCKS}{name}": part for name, part in denoiser.blocks.named_modules() if isinstance(part, nn.Linear)}
    check_patterns(keep, layers)
    left = {name: part for name, part in layers.items() if not any(fnmatchcase(name, pattern) for pattern in keep)}
    chosen = [name for name, part in left.items() if fits(part, least_width)]
    if not chosen:
        raise ValueError(none_wide(list(left.values()), least_width))
    library = float8()
    config = replace(library.Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True)
    library.convert_to_float8_training(
        denoiser.blocks, module_filter_fn=lambda part, name: f"{BLOCKS}{name}" in chosen, config=config
    )
    how = ", emulated: its numbers without its speed" if emulate else ""
    return f"{len(chosen)} of the {len(layers)} linear layers of the blocks multiply in FP8{how}"


def check_training(emulate: bool, compiled: bool, precision: str, stage: int | None, gpu: bool) -> None:
    """Raise if FP8 cannot work in a training, or gains nothing in it.

    `stage` is the stage of ZeRO, None for other strategies; `gpu`: whether the training may use a GPU.
    """
    float8()
    if stage == 3:
        raise ValueError(
            "strategy: found ZeRO 3 with fp8=, expected fsdp2, which splits as much: under ZeRO 3 each layer that "
            "multiplies in FP8 would hold its whole weight until its backward pass"
        )
    if emulate:
        return
    check_card(torch.cuda.get_device_capability() if gpu and torch.cuda.is_available() else None)
    if not compiled:
        raise ValueError(
            "compile: found null with fp8=, expected compile=blocks: without a compiler rounding takes longer than the "
            "products save"
        )
    if precision not in HALF:
        raise ValueError(
            f"trainer.precision: found {precision} with fp8=, expected {' or '.join(HALF)}: products in FP8 give "
            "bfloat16"
        )


def check_card(capability: tuple[int, int] | None) -> None:
    """Raise if a card of this compute capability cannot multiply in FP8; None: there is no card."""
    if capability is None or capability < FIRST:
        found = "no CUDA device" if capability is None else f"compute capability {capability[0]}.{capability[1]}"
        raise ValueError(
            f"fp8: found {found}, expected 8.9 or higher (L40S, RTX 4090, H100 or newer), which multiplies in FP8; "
            "leave fp8= out, or set fp8.emulate=true, which computes the same numbers slowly"
        )


def float8() -> ModuleType:
    """Return torchao's package for training in FP8; it warns of kernels for other cards and other products."""
    with no_warnings_logged():
        import torchao.float8
    return torchao.float8


def check_patterns(keep: Sequence[str], names: Collection[str]) -> None:
    """Raise if a pattern matches no layer."""
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"fp8.keep: found {pattern!r}, which matches no linear layer of the blocks, expected names such as "
                f"{next(iter(names), 'none: there is no such layer')}, with * for any part"
            )


def fits(part: nn.Linear, least: int) -> bool:
    """Tell whether a layer is wide enough and has sides that a card can multiply in FP8."""
    sides = (part.in_features, part.out_features)
    return min(sides) >= least and all(side % UNIT == 0 for side in sides)


def none_wide(layers: Sequence[nn.Linear], least: int) -> str:
    """Return the message for blocks without a layer that fits."""
    found = max((min(part.in_features, part.out_features) for part in layers), default=0)
    return (
        f"model.width: found linear layers of {found} inputs or outputs at most with fp8=, expected {least} or more, a "
        f"multiple of {UNIT}: narrower ones lose more time by rounding than they save; leave fp8= out, or set "
        "fp8.least_width"
    )
