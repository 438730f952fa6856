"""Encode captions with a frozen pretrained encoder: T5, UMT5 or the text half of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from videodiff.device import send
from videodiff.pretrained import essential, fingerprint, load_frozen, read_config
from videodiff.words import count_text

# model_type in config.json -> class; from a whole CLIP (`clip`) only the text half is loaded.
CLASSES = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}

# Two tokenizers with equal vocabularies that split this text alike count as equal.
PROBE = "A small RED ball -- isn't it? -- rolls (slowly) down 3.14 m of Hügel;\tthen,  it's gone."


class Transformers(nn.Module):
    """Encode captions with a frozen model of the transformers library; longer captions are cut at `max_length` tokens.

    `path_or_name` is a folder or a hub name that holds model and tokenizer; in the repository of a diffusers pipeline
    these are two subfolders. `kind` (t5, umt5, clip) overrides the model_type of config.json. `layer` -1 is the output
    of the model, -2 the output of its last block but one, and so on.
    """

    unit: Literal["tokens"] = "tokens"
    trainable = False

    @staticmethod
    def read_shape(
        path_or_name: str, max_length: int = 77, subfolder: str | None = None, revision: str = "main", **other: Any
    ) -> tuple[int, int]:
        """Return the tokens per caption and their width for these settings; only config.json is read."""
        config = read_config("text", str(path_or_name), subfolder, revision)
        config = config.get("text_config", config)
        return max_length, config["d_model"] if "d_model" in config else config["hidden_size"]

    def __init__(
        self,
        path_or_name: str,
        kind: str | None = None,
        max_length: int = 77,
        dtype: str = "bfloat16",
        layer: int = -1,
        subfolder: str | None = None,
        tokenizer_subfolder: str | None = None,
        revision: str = "main",
    ) -> None:
        super().__init__()
        name = str(path_or_name)
        config = read_config("text", name, subfolder, revision)
        kind = kind or config.get("model_type")
        if kind not in CLASSES:
            raise ValueError(f"text: {name}: found the model type {kind!r}, expected one of {', '.join(CLASSES)}")
        cls = getattr(transformers, CLASSES[kind])
        self.model = load_frozen("text", cls, name, subfolder, revision, dtype)
        self.tokenizer = load_tokenizer(name, tokenizer_subfolder, revision, self.model.config.vocab_size)
        self.width, self.max_length, self.layer = self.model.config.hidden_size, max_length, layer
        self.name = f"{CLASSES[kind]} {Path(name, subfolder or '')}"
        self.settings = {
            "encoder": CLASSES[kind],
            "config": essential(config),
            "max_length": max_length,
            "layer": layer,
        }
        self.empty: tuple[Tensor, Tensor] | None = None
        self.check()

    def check(self) -> None:
        """Raise if length or layer do not fit the model."""
        places = getattr(self.model.config, "max_position_embeddings", None) or self.max_length
        if not 1 <= self.max_length <= places:
            raise ValueError(f"text.max_length: found {self.max_length}, expected 1 to {places}")
        layers = self.model.config.num_hidden_layers
        if not -layers <= self.layer <= -1:
            raise ValueError(f"text.layer: found {self.layer}, expected -{layers} to -1")

    @cached_property
    def fingerprint(self) -> str:
        """Return a sha-256 of everything that decides the features: settings, weights, vocabulary and a probe text."""
        words = {"vocabulary": self.tokenizer.get_vocab(), "probe": self.tokenizer(PROBE)["input_ids"]}
        return fingerprint(self.settings | words, self.model)

    def train(self, mode: bool = True) -> Transformers:
        """Stay in evaluation mode."""
        return super().train(False)

    def tokens(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption, before the cut at `max_length`."""
        # The library's tokenizers raise for an empty list.
        found = self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"] if captions else []
        return [len(ids) for ids in found]

    def cut(self, caption: str) -> str:
        """Return the end of a caption that is cut off at `max_length`."""
        ids = self.tokenizer(caption, truncation=False, verbose=False, add_special_tokens=False)["input_ids"]
        added = self.tokens([caption])[0] - len(ids)
        return self.tokenizer.decode(ids[max(self.max_length - added, 0) :])

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features `b l width`, float32, 0 at padding, and a mask `b l`, True at tokens; l is `max_length`."""
        if list(captions) != [""]:
            return self.encode(captions)
        # Training needs the empty caption in every step, and a frozen model always gives the same features.
        if self.empty is None or self.empty[0].device != self.model.device:
            self.empty = self.encode([""])
        return self.empty

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Run tokenizer and model."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        ids, mask = (send(tokens[name], self.model.device) for name in ("input_ids", "attention_mask"))
        mask = mask.bool()
        # Without start and end tokens an empty caption has no token, and many models give NaN for none.
        mask[:, 0] = True
        with torch.autocast(self.model.device.type, enabled=False):
            out = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != -1)
        features = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        return features.float().masked_fill(~mask[..., None], 0.0), mask


def load_tokenizer(
    name: str, subfolder: str | None, revision: str, vocabulary: int
) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of a model with so many words; code that comes with it is never run."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, subfolder=subfolder or "", revision=revision, trust_remote_code=False
        )
    # Each kind of tokenizer fails in its own way on a missing or broken file.
    except Exception as error:
        raise ValueError(f"text: {name}: cannot load the tokenizer: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:
        raise ValueError(f"text: {name}: found no padding token in the tokenizer, expected one")
    # Without its files a T5 tokenizer still loads, with an empty vocabulary, and every caption is the unknown word.
    ids = tokenizer.get_vocab()
    words = len(ids.keys() - tokenizer.get_added_vocab().keys())
    if words < 2 or max(ids.values()) >= vocabulary:
        raise ValueError(
            f"text: {name}: found a tokenizer of {count_text(words, 'word')} with ids up to {max(ids.values())}, "
            f"expected that of a model of {count_text(vocabulary, 'word')} (subfolder {subfolder!r})"
        )
    return tokenizer
