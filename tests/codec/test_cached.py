from __future__ import annotations

import io
import pickle

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from videodiff.codec.autoencoder import Autoencoder
from videodiff.codec.cached import (
    EncodingError,
    encode_captions,
    latent_member,
    pad_text,
    read_latent,
    read_text,
    text_record,
    write_array,
)
from videodiff.codec.pixels import Pixels, scale_pixels
from videodiff.text.words import Words


class Frozen(nn.Module):
    """Stand for a frozen encoder: each word is a vector of its length."""

    trainable, width, max_length = False, 2, 5

    def forward(self, captions):
        lengths = [[1.0, *map(float, map(len, c.split()))] for c in captions]
        text = torch.tensor([row + [0.0] * (5 - len(row)) for row in lengths])
        return text[..., None].expand(-1, -1, 2).clone(), text > 0


def frames(t: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (t, 16, 16, 3), dtype=np.uint8)


def npy(array: np.ndarray, **how) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def test_a_cached_clip_is_what_the_codec_gives_in_half_precision(tmp_path):
    torch.manual_seed(0)
    wan = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [0.1] * 4}
    diffusers.AutoencoderKLWan(**wan, **statistics).save_pretrained(tmp_path)
    codec = Autoencoder(str(tmp_path), dtype="float32")
    data = latent_member(codec, [frames()])
    expected = codec.encode(scale_pixels(torch.from_numpy(frames()).permute(3, 0, 1, 2)[None]))[0]
    assert np.load(io.BytesIO(data), allow_pickle=False).dtype == np.float16
    assert read_latent(data, "x").shape == (4, 2, 2, 2)
    torch.testing.assert_close(read_latent(data, "x"), expected, atol=1e-6, rtol=1e-3)


def test_parts_of_a_clip_are_encoded_by_themselves_and_joined_in_time():
    whole, parts = (latent_member(Pixels(), clip) for clip in ([frames()], [frames()[:3], frames()[3:]]))
    assert whole == parts
    assert read_latent(whole, "x").shape == (3, 5, 16, 16)


def test_a_cached_caption_is_its_tokens_without_padding():
    one, other = encode_captions(Frozen(), ["a red ball", ""])
    data = write_array(one, "text.npy")
    assert read_text(data, "x").tolist() == [[1.0, 1.0], [1.0, 1.0], [3.0, 3.0], [4.0, 4.0]]
    assert read_text(write_array(other, "text.1.npy"), "x").shape == (1, 2)


def test_the_text_of_a_trainable_encoder_is_never_cached():
    for use in (lambda encoder: encode_captions(encoder, ["a"]), text_record):
        with pytest.raises(ValueError, match="found the trainable encoder Words, expected a frozen one"):
            use(Words(["a"]))


def test_numbers_that_do_not_fit_in_half_precision_are_an_error():
    class Bright(Pixels):
        def encode(self, video):
            return video * 1e5

    with pytest.raises(EncodingError, match=r"latent\.npy: found numbers up to 1e\+05"):
        latent_member(Bright(), [frames(1)])


def test_captions_of_different_length_are_padded_and_masked():
    text, mask = pad_text([torch.ones(3, 2), torch.ones(1, 2)])
    assert mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert text[..., 0].tolist() == mask.float().tolist()
    assert text.shape == (2, 3, 2)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("ran pickled code",)


def huge() -> bytes:
    """Write a header that promises a terabyte and eight bytes after it."""
    stream = io.BytesIO()
    header = {"descr": "<f2", "fortran_order": False, "shape": (1 << 20, 1 << 19)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + b"01234567"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an array",
        pickle.dumps(Bomb()),
        npy(np.array([[Bomb()]], dtype=object), allow_pickle=True),
        npy(np.ones((2, 2), np.float16))[:-1],
        npy(np.ones((2, 2), np.float16)) + b"x",
        npy(np.ones((2, 2), np.int16)),
        npy(np.ones((2, 2, 2), np.float16)),
        npy(np.ones((0, 2), np.float16)),
        npy(np.full((2, 2), np.nan, np.float16)),
        npy(np.ones((2, 2), np.float16))[:9],
        huge(),
    ],
)
def test_bytes_that_are_not_a_whole_array_of_finite_floats_are_an_error_that_names_the_sample(data):
    with pytest.raises(ValueError, match=r"shard-00000\.tar/7"):
        read_text(data, "shard-00000.tar/7")


def test_fortran_order_is_read_as_it_was_meant():
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert read_text(npy(np.asfortranarray(array)), "x").tolist() == array.tolist()
