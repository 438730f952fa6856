from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from videodiff.codec.pixels import Pixels, scale_pixels


def test_pixels_are_their_own_latents():
    video = torch.rand(2, 3, 5, 8, 6)
    codec = Pixels()
    assert codec.encode(video) is video
    assert codec.decode(video) is video
    assert (codec.channels, codec.compression) == (3, (1, 1, 1))
    assert (codec.latent_frames(7), codec.frames(7)) == (7, 7)


def test_black_is_minus_one_and_white_is_one():
    assert scale_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_pixels_that_are_scaled_already_are_refused():
    with pytest.raises(ValueError, match=r"found pixels of type torch\.float32"):
        scale_pixels(torch.zeros(1))


def test_neither_pixels_nor_words_nor_cached_tensors_import_the_large_libraries():
    code = (
        "import sys, videodiff.codec.pixels, videodiff.codec.cached, videodiff.text.words, videodiff.training.encoding;"
        "print(sorted({'diffusers', 'transformers', 'tokenizers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
