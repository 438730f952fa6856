"""A learned vocabulary: one vector a word and one a place in the caption; trained with the denoiser, no download."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videodiff.device import send


def split_words(caption: str) -> list[str]:
    """Return the lower-case words of a caption, punctuation dropped."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", caption.lower())


def read_words(path: str | Path) -> list[str]:
    """Return the words of a dataset's words.txt, one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"text.vocabulary: found no file {path}, expected a dataset's words.txt, one word a line"
        )
    return parse_words(Path(path).read_bytes(), str(path))


def parse_words(data: bytes, where: str) -> list[str]:
    """Return the words of the content of a words.txt; `where` begins the message about a wrong line."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text.vocabulary: {where}: found bytes that are not UTF-8, expected one word a line"
        ) from error
    words = [line.strip() for line in lines]
    for number, word in enumerate(words, 1):
        if word and split_words(word) != [word]:
            raise ValueError(f"text.vocabulary: {where}:{number}: found {word[:40]!r}, expected one word in lower case")
    return [word for word in words if word]


class Words(nn.Module):
    """Encode captions word by word; an empty caption is the start token alone.

    `vocabulary` is a list of words or the path of a file with one a line; a caption has `max_words` - 1 words at most.
    A longer one is refused, or with `long` cut there; a word outside the vocabulary is refused, or with `unknown` drop
    left out.
    """

    trainable = True

    @staticmethod
    def read_shape(max_words: int, width: int = 64, **other: Any) -> tuple[int, int]:
        """Return tokens of a caption and their width for the encoder with these settings."""
        return max_words, width

    def __init__(
        self,
        vocabulary: str | Path | Iterable[str] | None,
        width: int = 64,
        max_words: int | None = 32,
        long: str = "refuse",
        unknown: str = "refuse",
    ) -> None:
        super().__init__()
        words = read_words(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
        self.vocabulary = list(dict.fromkeys(words or ()))
        if not self.vocabulary:
            raise ValueError("text.vocabulary: found no words, expected a list of words or a file with one a line")
        if max_words is None or max_words < 1:
            raise ValueError(f"text.max_words: found {max_words}, expected at least 1")
        for name, value, options in (("long", long, ("refuse", "cut")), ("unknown", unknown, ("refuse", "drop"))):
            if value not in options:
                raise ValueError(f"text.{name}: found {value!r}, expected {' or '.join(options)}")
        self.width, self.max_words, self.long, self.unknown = width, max_words, long, unknown
        self.index = {word: i + 2 for i, word in enumerate(self.vocabulary)}
        self.word = nn.Embedding(len(self.vocabulary) + 2, width, padding_idx=0)
        self.place = nn.Embedding(max_words, width)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features `b l width` and a mask `b l`, True where there is a word; l is always `max_words`."""
        device = self.word.weight.device
        ids = send(torch.tensor([self.encode(caption) for caption in captions]), device)
        # By a call, as ZeRO 3 brings the weights of a part together when it is called.
        return self.word(ids) + self.place(torch.arange(self.max_words, device=device)), ids > 0

    def encode(self, caption: str) -> list[int]:
        """Return start token and words as integers, padded with 0; what does not fit is an error unless it may go."""
        if fault := self.fault(caption):
            raise ValueError(fault)
        ids = [1] + [self.index[word] for word in split_words(self.fit(caption))]
        return ids + [0] * (self.max_words - len(ids))

    def fault(self, caption: str) -> str | None:
        """Tell why a caption is refused, None where it is taken."""
        words = split_words(caption)
        if self.unknown == "refuse" and (unknown := self.strange(words)):
            return (
                f"caption {shown(caption)}: found the word {unknown[0]!r}, expected one of the {len(self.vocabulary)} "
                f"words that this model knows (nearest: {', '.join(map(repr, self.nearest(unknown[0])))})"
            )
        if self.long == "refuse" and len(words) >= self.max_words:
            return f"caption has {len(words)} words, expected at most {self.max_words - 1}: {shown(caption)}"
        return None

    def fit(self, caption: str) -> str:
        """Return a caption without unknown words and cut to the length that the encoder takes; as it is if it fits."""
        words = split_words(caption)
        known = [word for word in words if word in self.index][: self.max_words - 1]
        return caption if known == words else " ".join(known)

    def strange(self, words: Iterable[str]) -> list[str]:
        """Return those of these words that are not in the vocabulary, each once."""
        return [word for word in dict.fromkeys(words) if word not in self.index]

    def nearest(self, word: str) -> list[str]:
        """Return up to three words of the vocabulary that are spelt like this one."""
        near = difflib.get_close_matches(word, self.vocabulary, n=3, cutoff=0.6)
        return near or difflib.get_close_matches(word, self.vocabulary, n=1, cutoff=0.0)


def shown(caption: str, most: int = 100) -> str:
    """Return a caption as a message shows it."""
    return repr(caption if len(caption) <= most else f"{caption[:most]}...")
