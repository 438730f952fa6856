"""A learned vocabulary: one vector a word and one a place in the caption; trained with the denoiser, no download."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def split_words(caption: str) -> list[str]:
    """Return the lower-case words of a caption, punctuation dropped."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", caption.lower())


def read_words(path: str | Path) -> list[str]:
    """Return the words of a dataset's words.txt, one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"text.vocabulary: found no file {path}, expected a dataset's words.txt, one word a line"
        )
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text.vocabulary: {path}: found bytes that are not UTF-8, expected one word a line"
        ) from error
    words = [line.strip() for line in lines]
    for number, word in enumerate(words, 1):
        if word and split_words(word) != [word]:
            raise ValueError(f"text.vocabulary: {path}:{number}: found {word[:40]!r}, expected one word in lower case")
    return [word for word in words if word]


class Words(nn.Module):
    """Encode captions word by word; an empty caption is the start token alone.

    `vocabulary` is a list of words or the path of a file with one a line.
    """

    trainable = True

    def __init__(self, vocabulary: str | Path | Iterable[str], width: int = 64, max_words: int = 32) -> None:
        super().__init__()
        words = read_words(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
        self.vocabulary = list(dict.fromkeys(words))
        if not self.vocabulary:
            raise ValueError("text.vocabulary: found no words, expected a list of words or a file with one a line")
        self.width, self.max_words = width, max_words
        self.index = {word: i + 2 for i, word in enumerate(self.vocabulary)}
        self.word = nn.Embedding(len(self.vocabulary) + 2, width, padding_idx=0)
        self.place = nn.Embedding(max_words, width)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features `b l width` and a mask `b l`, True where there is a word; l is always `max_words`."""
        device = self.word.weight.device
        ids = torch.tensor([self.encode(caption) for caption in captions], device=device)
        return self.word(ids) + self.place.weight, ids > 0

    def encode(self, caption: str) -> list[int]:
        """Return start token and words as integers, padded with 0; a word outside the vocabulary is an error."""
        words = split_words(caption)
        if len(words) >= self.max_words:
            raise ValueError(f"caption has {len(words)} words, expected at most {self.max_words - 1}: {caption!r}")
        unknown = [word for word in words if word not in self.index]
        if unknown:
            nearest = difflib.get_close_matches(unknown[0], self.vocabulary, n=1, cutoff=0.0)
            raise ValueError(
                f"caption {caption!r}: found the word {unknown[0]!r}, expected one of the {len(self.vocabulary)} words "
                f"that this model knows (nearest: {nearest[0]!r})"
            )
        ids = [1] + [self.index[word] for word in words]
        return ids + [0] * (self.max_words - len(ids))
