"""Clips to tokens and back: a linear map of non-overlapping space-time patches."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def patchify(z: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut a clip `b c t h w` into tokens `b t s p`: s runs over rows then columns, p over (pt, ph, pw, c)."""
    pt, ph, pw = patch
    for axis, size, unit in zip("thw", z.shape[2:], patch, strict=True):
        if size % unit:
            raise ValueError(f"clip: found {axis} = {size}, expected a multiple of the patch's {unit}")
    return rearrange(z, "b c (t pt) (h ph) (w pw) -> b t (h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Tensor, patch: tuple[int, int, int], h: int) -> Tensor:
    """Invert `patchify`; `h` is the number of patch rows."""
    pt, ph, pw = patch
    return rearrange(tokens, "b t (h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)", h=h, pt=pt, ph=ph, pw=pw)
