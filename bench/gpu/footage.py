"""Datasets and frozen models with random weights, made on the spot: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videodiff.data.samples.shards import ShardWriter, clip_sample
from videodiff.data.video.decode import probe
from videodiff.data.video.encode import encode
from videodiff.worlds.scene import render


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder unless an earlier proof has made it; return it."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        make(partial)
        partial.rename(folder)
    return folder


def world_dataset(folder: Path, world: Any, clips: int, size: int, first: int = 0) -> Path:
    """Return a dataset of clips of a simulated world."""

    def make(partial: Path) -> None:
        with ShardWriter(partial) as writer:
            for seed in range(first, first + clips):
                scene = world.scene(seed)
                video = encode(render(scene, size), scene.fps, crf=10)
                writer.add(f"{seed:06d}", *clip_sample(video, probe(video), [scene.caption], truth=scene.truth()))
        (partial / "words.txt").write_text("".join(f"{word}\n" for word in world.words()))

    return once(folder, make)


def image_autoencoder(folder: Path, channels: tuple[int, ...]) -> Path:
    """Return an autoencoder of Stable Diffusion's kind, 8 x 8 pixels to 4 numbers."""

    def make(partial: Path) -> None:
        import diffusers

        torch.manual_seed(0)
        diffusers.AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=1 if channels[0] < 64 else 2,
            norm_num_groups=4 if channels[0] < 64 else 32,
        ).save_pretrained(partial)

    return once(folder, make)


def causal_autoencoder(folder: Path) -> Path:
    """Return a small autoencoder of Wan's kind: 1 + 4 k frames to 1 + k, 8 x 8 pixels to 4 numbers."""

    def make(partial: Path) -> None:
        import diffusers

        torch.manual_seed(0)
        diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.0] * 4
        ).save_pretrained(partial)

    return once(folder, make)


def t5(folder: Path, words: list[str], width: int) -> Path:
    """Return a T5 encoder of two layers with a tokenizer of whole words."""

    def make(partial: Path) -> None:
        import tokenizers
        import transformers

        torch.manual_seed(0)
        known = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(partial)
        config = transformers.T5Config(
            vocab_size=len(known), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4
        )
        transformers.T5EncoderModel(config).save_pretrained(partial)

    return once(folder, make)
