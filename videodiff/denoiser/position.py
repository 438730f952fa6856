"""Where a token is: rotary embeddings of continuous coordinates, and a sinusoid for scalars.

Rotary embedding turns pairs of query and key channels by an angle proportional to the coordinate, so attention sees
differences of coordinates (Su et al. 2021, arXiv 2104.09864, eq. 34). Coordinates are real numbers: a clip twice as
fine covers the same range of space, so resolution and length may change after training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

REFERENCE = 16.0


def frame_coordinates(t: int, device: torch.device | None = None) -> Tensor:
    """Return the coordinate of each of `t` frames: 0, 1, 2, ..."""
    return torch.arange(t, device=device, dtype=torch.float32)


def patch_coordinates(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Return the centre of each patch as (h w, 2): row and column, 0 in the middle, a square view spans `REFERENCE`."""
    scale = REFERENCE / math.sqrt(h * w)
    rows = (torch.arange(h, device=device, dtype=torch.float32) + 0.5 - h / 2) * scale
    columns = (torch.arange(w, device=device, dtype=torch.float32) + 0.5 - w / 2) * scale
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def frequencies(n: int, longest: float, device: torch.device | None = None) -> Tensor:
    """Return `n` angular frequencies, geometric from 1 down to 1 / `longest`."""
    return longest ** (-torch.arange(n, device=device, dtype=torch.float32) / max(n - 1, 1))


def rotary_table(coordinates: Tensor, head_width: int, longest: float = 100.0) -> Tensor:
    """Return cosine and sine of the angle of each channel pair, (n, head_width / 2, 2), for coordinates (n, axes).

    The channel pairs are dealt out evenly to the axes.
    """
    pairs, axes = head_width // 2, coordinates.shape[-1]
    share = [pairs // axes + (axis < pairs % axes) for axis in range(axes)]
    angles = [coordinates[:, axis, None] * frequencies(n, longest, coordinates.device) for axis, n in enumerate(share)]
    angle = torch.cat(angles, dim=-1)
    return torch.view_as_real(torch.polar(torch.ones_like(angle), angle))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of `... n head_width` by the table's angle, in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = turn(pairs, table) if torch.compiler.is_compiling() else turn_complex(pairs, table)
    return turned.flatten(-2).type_as(x)


def turn(pairs: Tensor, table: Tensor) -> Tensor:
    """Turn pairs `... n e 2` in real numbers: a compiler fuses this with its surroundings into one kernel."""
    (first, second), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)


def turn_complex(pairs: Tensor, table: Tensor) -> Tensor:
    """Turn pairs `... n e 2` in complex numbers, which no compiler supports: ten times as fast without one."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))


def sinusoid(value: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Embed any real tensor as cosines and sines of it: `...` -> `... width`."""
    angle = value[..., None] * frequencies(width // 2, longest, value.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def space_sinusoid(coordinates: Tensor, width: int) -> Tensor:
    """Embed patch centres (s, 2) as (s, width): half the channels tell the row, half the column.

    Rotary attention sees only differences; this embedding shows where the borders of the view are.
    """
    return torch.cat([sinusoid(coordinates[:, axis], width // 2, longest=100.0) for axis in (0, 1)], dim=-1)
