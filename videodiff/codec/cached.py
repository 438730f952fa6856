"""Encoded clips and captions that travel in the shard, so that training needs no encoder.

`<key>.latent.npy` is float16 `c t h w`, normalised by its codec; `<key>.text.npy` is float16 `l d`, without padding.
Arrays are read without pickle, and their size is checked against their header before memory is taken for them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor, nn

from videodiff.codec.pixels import scale_pixels


def latent_member(codec: nn.Module, frames: np.ndarray, device: str | torch.device = "cpu") -> bytes:
    """Return the `latent.npy` of a clip: uint8 frames `t h w c`, encoded by a codec that is on `device`."""
    video = torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None]
    return write_array(codec.encode(scale_pixels(video))[0], "latent.npy")


@torch.no_grad()
def text_member(encoder: nn.Module, caption: str) -> bytes:
    """Return the `text.npy` of a caption by a frozen encoder."""
    if encoder.trainable:
        raise ValueError(f"text.npy: found the trainable encoder {type(encoder).__name__}, expected a frozen one")
    text, mask = encoder([caption])
    return write_array(text[0][mask[0]], "text.npy")


def write_array(array: Tensor, where: str) -> bytes:
    """Return float16 bytes in numpy's format; a number that does not fit in float16 is an error."""
    with np.errstate(over="ignore"):
        half = array.cpu().numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{where}: found numbers up to {array.abs().max():.3g}, expected finite ones below 65504")
    stream = io.BytesIO()
    np.save(stream, half, allow_pickle=False)
    return stream.getvalue()


def read_latent(data: bytes, where: str) -> Tensor:
    """Return a cached clip `c t h w`, float32; `where` (shard, key) begins the message about one that is broken."""
    return read_array(data, 4, where)


def read_text(data: bytes, where: str) -> Tensor:
    """Return a cached caption `l d`, float32."""
    return read_array(data, 2, where)


def read_array(data: bytes, ndim: int, where: str) -> Tensor:
    """Return a float array of `ndim` axes, none of them empty."""
    stream = io.BytesIO(data)
    try:
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{where}: found no numpy array: {error}") from error
    expected, found = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if dtype.kind != "f" or len(shape) != ndim or 0 in shape or found != expected:
        raise ValueError(
            f"{where}: found {dtype} of shape {shape} in {found} bytes, expected float16 with {ndim} axes in {expected}"
        )
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: found numbers that are not finite")
    return torch.from_numpy(array.astype(np.float32))


def pad_text(texts: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Join captions `l d` into `b length d`, 0 at padding, and a mask `b length`; None takes the longest's length."""
    length = max(len(text) for text in texts) if length is None else length
    if max(len(text) for text in texts) > length:
        raise ValueError(f"cached text: found {max(len(text) for text in texts)} tokens, expected at most {length}")
    padded = texts[0].new_zeros(len(texts), length, texts[0].shape[-1])
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for i, text in enumerate(texts):
        padded[i, : len(text)], mask[i, : len(text)] = text, True
    return padded, mask
