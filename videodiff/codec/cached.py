"""Encoded clips and captions in the shards, so that training needs no encoder.

`<key>.latent.npy` is float16 `c t h w`, normalised by its codec. `<key>.text.npy` is the first caption as float16 `l d`
without padding, `<key>.text.1.npy` the second caption, and so on. float16 has three more bits of precision than the
bfloat16 of the encoders, and a range up to 65504. The manifest states which models made them. Arrays are read without
pickle, and their size is checked against their header before memory is allocated.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor, nn

from videodiff.codec.pixels import scale_pixels

# Describes the path from frames to stored latents, as a part of the fingerprint: change it when the path changes.
TRANSFORM = "scaled to cover, bilinear antialiased; centre cropped; x / 127.5 - 1; mode; normalised; float16"


class EncodingError(ValueError):
    """A clip or a caption whose encoding cannot be stored."""


def latent_member(codec: nn.Module, parts: Iterable[np.ndarray], device: str | torch.device = "cpu") -> bytes:
    """Return the `latent.npy` of a clip, whose parts, uint8 frames `t h w c`, a codec on `device` encodes in turn.

    It stores the mode of the posterior, as training without a cache uses it.
    """
    videos = (torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None] for frames in parts)
    return write_array(torch.cat([codec.encode(scale_pixels(video))[0] for video in videos], dim=1), "latent.npy")


@torch.no_grad()
def encode_captions(encoder: nn.Module, captions: Sequence[str]) -> list[Tensor]:
    """Return the features `l d` for the `text.npy` of each caption, by a frozen encoder."""
    if encoder.trainable:
        raise ValueError(f"text.npy: found the trainable encoder {type(encoder).__name__}, expected a frozen one")
    return [text[mask] for text, mask in zip(*encoder(captions), strict=True)]


def text_names(captions: int) -> list[str]:
    """Return the names of the members for this many captions; a clip without captions stores the empty caption."""
    return ["text.npy", *(f"text.{number}.npy" for number in range(1, captions))]


def latent_record(codec: nn.Module, sizes: Sequence[Sequence[int]], windows: dict[str, Any]) -> dict[str, Any]:
    """Return everything that decides the latents of a dataset, with its fingerprint.

    sizes: height and width of the clips; windows: the fields of `Windows`.
    """
    how = {"codec": codec.fingerprint, "sizes": [list(size) for size in sizes], **windows, "transform": TRANSFORM}
    return {"of": codec.name, **how, "fingerprint": digest(how)}


def text_record(encoder: nn.Module) -> dict[str, Any]:
    """Return everything that decides the encoded text of a dataset, with its fingerprint."""
    if encoder.trainable:
        raise ValueError(f"text: found the trainable encoder {type(encoder).__name__}, expected a frozen one")
    how = {"encoder": encoder.fingerprint, "dtype": "float16"}
    return {"of": encoder.name, **how, "fingerprint": digest(how)}


def digest(how: dict[str, Any]) -> str:
    """Return the sha-256 of plain values."""
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()


# The keys of a record that hold a model's fingerprint, and settings that it follows from, beside the weights.
MODELS = {"codec": "codec.dtype, mean, std or tile", "encoder": "text.dtype, max_length or layer"}


def difference(what: str, found: Any, expected: Any) -> tuple[str, Any, Any] | None:
    """Return the first setting in which two records, or their absence, differ, and its values; None if in none."""
    records = [record for record in (found, expected) if isinstance(record, dict)]
    if len(records) < 2:
        named = [named_model(record) if isinstance(record, dict) else record for record in (found, expected)]
        return (what, *named) if found != expected else None
    keys = sorted({*found, *expected} - {"of", "fingerprint"})
    key = next((key for key in keys if found.get(key) != expected.get(key)), None)
    if key in MODELS:
        return what, named_model(found), named_model(expected)
    return None if key is None else (key, found.get(key), expected.get(key))


def named_model(record: dict[str, Any]) -> str:
    """Return the model of a record in words."""
    return f"{record['of']} (fingerprint {record['fingerprint'][:12]})"


def check_record(what: str, found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Raise if a dataset was encoded by another codec or text encoder than the configured one."""
    if found["fingerprint"] != expected["fingerprint"]:
        same = next(settings for key, settings in MODELS.items() if key in expected)
        other = f", which differ in weights or in {same}" if found["of"] == expected["of"] else ""
        raise ValueError(
            f"{where}: found {what} by {named_model(found)}, expected {what} by the configured "
            f"{named_model(expected)}{other}: configure the first, or encode the dataset again by videodiff cache"
        )


def write_array(array: Tensor, where: str) -> bytes:
    """Return float16 bytes in numpy's format; EncodingError for a number that does not fit into float16."""
    with np.errstate(over="ignore"):
        half = array.cpu().numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise EncodingError(f"{where}: found numbers up to {array.abs().max():.3g}, expected finite ones below 65504")
    stream = io.BytesIO()
    np.save(stream, half, allow_pickle=False)
    return stream.getvalue()


def read_latent(data: bytes, where: str) -> Tensor:
    """Return a cached clip `c t h w`, float32; `where` (shard, key) begins the error message of a broken one."""
    return read_array(data, 4, where)


def read_text(data: bytes, where: str) -> Tensor:
    """Return a cached caption `l d`, float32."""
    return read_array(data, 2, where)


def read_array(data: bytes, ndim: int, where: str) -> Tensor:
    """Return a float array with `ndim` axes, none of length 0."""
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


def pad_text(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join captions `l d` into `b length d`, 0 at padding, and a mask `b length`, by the length of the longest."""
    length = max(len(text) for text in texts)
    padded = texts[0].new_zeros(len(texts), length, texts[0].shape[-1])
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for i, text in enumerate(texts):
        padded[i, : len(text)], mask[i, : len(text)] = text, True
    return padded, mask
