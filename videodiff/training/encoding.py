"""From a batch to the denoiser's inputs: the cached tensor if the batch has one, else the output of the encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from videodiff.codec.pixels import scale_pixels
from videodiff.words import count_text

Made = TypeVar("Made")


def counted(encode: Callable[[], Made]) -> tuple[Made, int]:
    """Return what an encoder makes, and the FLOPs that torch counts in it: no formula knows every encoder."""
    with FlopCounterMode(display=False) as counter:
        made = encode()
    return made, counter.get_total_flops()


def kind_of(batch: dict[str, Any]) -> tuple[Any, ...]:
    """Return what the work of the encoders in a batch follows from."""
    return tuple((name, tuple(batch[name].shape)) for name in ("video", "latent", "text") if name in batch)


def encode_video(batch: dict[str, Any], codec: nn.Module, device: torch.device | str) -> Tensor:
    """Return clean clips `b c t h w` in the codec's space, float32, from `latent` or from uint8 `video`."""
    if "latent" not in batch:
        return codec.encode(scale_pixels(batch["video"].to(device, non_blocking=True)))
    latent = batch["latent"].to(device, torch.float32, non_blocking=True)
    if latent.shape[1] != codec.channels:
        raise ValueError(
            f"cached latents {first_key(batch)}: found {count_text(latent.shape[1], 'channel')}, expected the "
            f"{codec.channels} of the codec {type(codec).__name__}"
        )
    return latent


def encode_text(batch: dict[str, Any], encoder: nn.Module, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return text features `b l d`, float32, and their mask `b l`, from `text` and `text_mask` or from `caption`.

    Cached text is padded to the encoder's length, so that the empty caption can replace a dropped one.
    """
    if "text" not in batch:
        text, mask = encoder(batch["caption"])
        return text.to(device), mask.to(device)
    if encoder.trainable:
        raise ValueError(
            f"cached text {first_key(batch)}: found a trainable encoder, expected the frozen one it is from"
        )
    text = batch["text"].to(device, torch.float32, non_blocking=True)
    mask = batch["text_mask"].to(device, torch.bool, non_blocking=True)
    spare = encoder.max_length - text.shape[1]
    if text.shape[2] != encoder.width or spare < 0:
        raise ValueError(
            f"cached text {first_key(batch)}: found {count_text(text.shape[1], 'token')} of width {text.shape[2]}, "
            f"expected at most {encoder.max_length} of width {encoder.width}, as the encoder gives"
        )
    text, mask = F.pad(text, (0, 0, 0, spare)), F.pad(mask, (0, spare))
    if "" in batch.get("caption", ()):
        # A sample whose captions all have weight 0 comes without tokens: it gets the empty caption.
        (null, null_mask), none = encoder([""]), ~mask.any(1)
        text = torch.where(none[:, None, None], null.to(device), text)
        mask = torch.where(none[:, None], null_mask.to(device), mask)
    return text, mask


def first_key(batch: dict[str, Any]) -> str:
    """Return where to look for a wrong batch: the key of its first sample."""
    return f"({batch['key'][0]} ...)" if batch.get("key") else "of the batch"
