from __future__ import annotations

import pytest
import torch
from torch import nn

from videodiff.codec.pixels import Pixels
from videodiff.text.words import Words
from videodiff.training.encoding import counted, encode_text, encode_video


class Frozen(nn.Module):
    """Stand for a frozen encoder of five tokens, two wide; it must not be asked where the batch has the text."""

    trainable, width, max_length = False, 2, 5

    def forward(self, captions):
        return pytest.fail("asked the encoder")


def test_pixels_become_floats_between_minus_one_and_one():
    video = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    x = encode_video({"video": video}, Pixels(), "cpu")
    torch.testing.assert_close(x.flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_a_cached_latent_takes_the_place_of_the_codec(monkeypatch):
    codec = Pixels(channels=4)
    monkeypatch.setattr(codec, "encode", lambda video: pytest.fail("asked the codec"))
    latent = torch.rand(2, 4, 3, 2, 2)
    x = encode_video({"latent": latent.half(), "key": ["a", "b"]}, codec, "cpu")
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, latent.half().float(), rtol=0, atol=0)


def test_a_latent_of_another_codec_is_an_error_that_names_the_sample():
    with pytest.raises(
        ValueError, match=r"cached latents \(k7 \.\.\.\): found 16 channels, expected the 3 of the codec Pixels"
    ):
        encode_video({"latent": torch.zeros(1, 16, 1, 2, 2), "key": ["k7"]}, Pixels(), "cpu")


def test_captions_go_through_the_encoder_and_stay_trainable():
    words = Words(["red", "ball"], width=8, max_words=4)
    text, mask = encode_text({"caption": ["red ball", ""]}, words, "cpu")
    assert text.requires_grad
    assert mask.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_cached_text_takes_the_place_of_the_encoder_and_has_its_length():
    text, mask = torch.rand(2, 3, 2), torch.tensor([[True, True, True], [True, False, False]])
    made, made_mask = encode_text({"text": text.half(), "text_mask": mask, "key": ["a", "b"]}, Frozen(), "cpu")
    assert (made.shape, made.dtype) == ((2, 5, 2), torch.float32)
    torch.testing.assert_close(made[:, :3], text.half().float(), rtol=0, atol=0)
    assert made[:, 3:].abs().max() == 0
    assert made_mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_a_caption_of_which_no_tokens_are_cached_is_the_empty_one():
    class Null(Frozen):
        def forward(self, captions):
            assert list(captions) == [""]
            return torch.full((1, 5, 2), 7.0), torch.tensor([[True, False, False, False, False]])

    text, mask = torch.rand(2, 3, 2), torch.tensor([[True, True, True], [False, False, False]])
    made, made_mask = encode_text({"text": text, "text_mask": mask, "caption": ["a b c", ""]}, Null(), "cpu")
    torch.testing.assert_close(made[0, :3], text[0], rtol=0, atol=0)
    assert made[1].unique().tolist() == [7.0]
    assert made_mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 6, 2)])
def test_text_of_another_encoder_is_an_error_that_names_the_sample(shape):
    batch = {"text": torch.zeros(shape), "text_mask": torch.ones(shape[:2], dtype=torch.bool), "key": ["k7"]}
    with pytest.raises(ValueError, match=r"cached text \(k7 \.\.\.\): found . tokens of width .*at most 5 of width 2"):
        encode_text(batch, Frozen(), "cpu")


def test_cached_text_beside_a_trainable_encoder_is_an_error():
    batch = {"text": torch.zeros(1, 1, 64), "text_mask": torch.ones(1, 1, dtype=torch.bool)}
    with pytest.raises(ValueError, match="cached text of the batch: found a trainable encoder"):
        encode_text(batch, Words(["a"]), "cpu")


def test_flops_of_an_encoder_are_those_of_its_products() -> None:
    layer, x = torch.nn.Linear(6, 5), torch.zeros(2, 7, 6)
    made, flops = counted(lambda: layer(x))
    assert made.shape == (2, 7, 5)
    assert flops == 2 * 14 * 6 * 5
