"""A learned vocabulary: a vector per word and per index in the caption; trained with the denoiser, no download."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from videodiff.data.storage.files import no_file
from videodiff.device import send
from videodiff.text.protocol import CaptionFault
from videodiff.words import count_text, parse_words, split_words


def read_words(path: str | Path) -> list[str]:
    """Return the words of a dataset's words.txt, one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"text.vocabulary: found {no_file(path)}, expected a dataset's words.txt, one word a line"
        )
    return parse_words(Path(path).read_bytes(), str(path))


class Words(nn.Module):
    """Encode captions word by word; an empty caption is the start token alone.

    `vocabulary` is a list of words or the path of a file with one word per line. A caption has at most `max_words` - 1
    words. A longer caption is refused, or cut if `long` is cut. A caption with a word outside the vocabulary is
    refused, or loses this word if `unknown` is drop.

    A word also sees the `near` words on each side. Without them "left" is the same for the red and for the blue ball of
    "a red ball moves left and a blue ball moves up", and a network has to find out by the places of the words whose it
    is; a small one does not.
    """

    unit: Literal["words"] = "words"
    trainable = True

    @staticmethod
    def read_shape(max_words: int, width: int = 64, **other: Any) -> tuple[int, int]:
        """Return the tokens per caption and their width for an encoder with these settings."""
        return max_words, width

    def __init__(
        self,
        vocabulary: str | Path | Iterable[str] | None,
        width: int = 64,
        max_words: int | None = 32,
        long: str = "refuse",
        unknown: str = "refuse",
        near: int = 4,
    ) -> None:
        super().__init__()
        words = read_words(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
        self.vocabulary = list(dict.fromkeys(words or ()))
        if not self.vocabulary:
            raise ValueError("text.vocabulary: found no words, expected a list of words or a file with one a line")
        if max_words is None or max_words < 1:
            raise ValueError(f"text.max_words: found {max_words}, expected at least 1")
        if near < 0:
            raise ValueError(f"text.near: found {near}, expected 0 or more words")
        for name, value, options in (("long", long, ("refuse", "cut")), ("unknown", unknown, ("refuse", "drop"))):
            if value not in options:
                raise ValueError(f"text.{name}: found {value!r}, expected {' or '.join(options)}")
        self.width, self.max_words, self.long, self.unknown = width, max_words, long, unknown
        self.index = {word: i + 2 for i, word in enumerate(self.vocabulary)}
        self.word = nn.Embedding(len(self.vocabulary) + 2, width, padding_idx=0)
        self.place = nn.Embedding(max_words, width)
        self.near = near
        # No part of it where no neighbour counts: checkpoints keep their names.
        self.neighbours = nn.Linear((2 * near + 1) * width, width) if near else None

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features `b l width` and a mask `b l`, True where there is a word; l is always `max_words`."""
        device = self.word.weight.device
        ids = send(torch.tensor([self.encode(caption) for caption in captions]), device)
        # Call the embedding: ZeRO 3 gathers the weights of a module when it is called.
        words, place = self.word(ids), self.place(torch.arange(self.max_words, device=device))
        return self.with_neighbours(words) + place, ids > 0

    def with_neighbours(self, words: Tensor) -> Tensor:
        """Add to each word `b l width` a linear function of itself and its neighbours; beyond the ends are zeros."""
        if self.neighbours is None:
            return words
        windows = pad(words, (0, 0, self.near, self.near)).unfold(1, 2 * self.near + 1, 1)
        return words + self.neighbours(windows.flatten(2))

    def encode(self, caption: str) -> list[int]:
        """Return start token and words as integers, padded with 0; ValueError if the caption is refused."""
        if fault := self.fault(caption):
            raise ValueError(fault.reason)
        ids = [1] + [self.index[word] for word in split_words(self.fit(caption))]
        return ids + [0] * (self.max_words - len(ids))

    def fault(self, caption: str) -> CaptionFault | None:
        """Return why a caption is refused, None if it is accepted."""
        words = split_words(caption)
        if self.unknown == "refuse" and (unknown := self.strange(words)):
            reason = (
                f"caption {shown(caption)}: found the word {unknown[0]!r}, expected one of the {len(self.vocabulary)} "
                f"words that this model knows (nearest: {', '.join(map(repr, self.nearest(unknown[0])))})"
            )
            return CaptionFault("unknown", reason)
        if self.long == "refuse" and len(words) >= self.max_words:
            reason = (
                f"caption has {count_text(len(words), 'word')}, expected at most {self.max_words - 1}: {shown(caption)}"
            )
            return CaptionFault("long", reason)
        return None

    def fit(self, caption: str) -> str:
        """Return a caption without unknown words, cut to the accepted length; unchanged if it fits."""
        words = split_words(caption)
        known = [word for word in words if word in self.index][: self.max_words - 1]
        return caption if known == words else " ".join(known)

    def accept_all(self) -> None:
        """Refuse no caption from now on: cut long ones, and drop unknown words."""
        self.long, self.unknown = "cut", "drop"

    def strange(self, words: Iterable[str]) -> list[str]:
        """Return the words that are not in the vocabulary, each once."""
        return [word for word in dict.fromkeys(words) if word not in self.index]

    def nearest(self, word: str) -> list[str]:
        """Return up to three words of the vocabulary with a similar spelling."""
        near = difflib.get_close_matches(word, self.vocabulary, n=3, cutoff=0.6)
        return near or difflib.get_close_matches(word, self.vocabulary, n=1, cutoff=0.0)


def shown(caption: str, most: int = 100) -> str:
    """Return a caption for a message, cut if it is long."""
    return repr(caption if len(caption) <= most else f"{caption[:most]}...")
