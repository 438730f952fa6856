"""Frozen encoders by name, so that a plan needs no download: their shape, their weights and what they compute."""

from __future__ import annotations

from typing import NamedTuple


class Encoder(NamedTuple):
    """Millions of weights, MFLOP of a token or a pixel, and what it gives.

    shape: channels and compression `t h w` of a codec, the width of a text encoder. moment: bytes for each pixel that a
    codec has in work.
    """

    millions: float
    mflop: float
    shape: tuple[int, tuple[int, int, int]] | int
    moment: float = 0.0


# A codec's FLOPs and bytes are those of a trace of diffusers' class on 16 frames of 256 x 256 in bfloat16. A text
# encoder takes two FLOPs for each weight that is no embedding; sizes from the models' configurations.
KNOWN = {
    "stabilityai/sd-vae-ft-mse": Encoder(83.7, 4.16, (4, (1, 8, 8)), 1286.0),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": Encoder(126.9, 5.11, (16, (4, 8, 8)), 443.0),
    "THUDM/CogVideoX-2b/text_encoder": Encoder(4762.0, 9261.0, 4096),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder": Encoder(5681.0, 9261.0, 4096),
    "openai/clip-vit-large-patch14": Encoder(123.0, 170.0, 768),
}
# Of one that is not in the table, with the shape that it says itself.
UNKNOWN = {"codec": Encoder(100.0, 5.0, 0, 1000.0), "text": Encoder(5000.0, 10000.0, 0)}


def known(place: str, subfolder: str | None) -> Encoder | None:
    """Return what is known of an encoder by its place on the hub."""
    return KNOWN.get("/".join(filter(None, [place, subfolder])))
