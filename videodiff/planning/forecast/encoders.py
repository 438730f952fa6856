"""Shape, weights and FLOPs of well-known frozen encoders by name, so that a plan needs no download."""

from __future__ import annotations

from typing import NamedTuple


class Encoder(NamedTuple):
    """Millions of weights, MFLOP for each token or pixel, and the shape of the output.

    shape: channels and compression `t h w` of a codec, the width of a text encoder. moment: bytes of a codec's
    activations for each pixel.
    """

    millions: float
    mflop: float
    shape: tuple[int, tuple[int, int, int]] | int
    moment: float = 0.0


# FLOPs and bytes of a codec: a trace of diffusers' class on 16 frames of 256 x 256 in bfloat16. A text encoder takes
# two FLOPs for each weight that is no embedding; its sizes come from the model's configuration.
KNOWN = {
    "stabilityai/sd-vae-ft-mse": Encoder(83.7, 4.16, (4, (1, 8, 8)), 1286.0),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": Encoder(126.9, 5.11, (16, (4, 8, 8)), 443.0),
    "THUDM/CogVideoX-2b/text_encoder": Encoder(4762.0, 9261.0, 4096),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder": Encoder(5681.0, 9261.0, 4096),
    "openai/clip-vit-large-patch14": Encoder(123.0, 170.0, 768),
}
# An assumption for encoders outside the table; their shape is asked of their own class.
UNKNOWN = {"codec": Encoder(100.0, 5.0, 0, 1000.0), "text": Encoder(5000.0, 10000.0, 0)}


def known(place: str, subfolder: str | None) -> Encoder | None:
    """Return the record of an encoder by its name on the hub, or None."""
    return KNOWN.get("/".join(filter(None, [place, subfolder])))
