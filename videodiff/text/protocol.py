"""The protocol of a text encoder: what the loader, training and sampling ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor


class CaptionFault(NamedTuple):
    """Why a caption is refused: for a word that is not known, or for its length."""

    kind: Literal["unknown", "long"]
    reason: str


class TextEncoder(Protocol):
    """Encodes captions: features `b l width` and a mask `b l`, True at tokens; l is the same for all captions.

    `unit` states how it limits captions, and so how they are checked before the first step. "words": it is a
    `WordEncoder`, which may refuse a caption. "tokens": it is a `TokenEncoder`, which cuts a longer caption.
    """

    unit: Literal["words", "tokens"]
    trainable: bool
    width: int

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]: ...


class WordEncoder(TextEncoder, Protocol):
    """An encoder with a vocabulary; a caption has at most `max_words` - 1 words."""

    max_words: int

    def fault(self, caption: str) -> CaptionFault | None:
        """Return why a caption is refused, None if it is accepted."""

    def fit(self, caption: str) -> str:
        """Return a caption without unknown words, cut to the length that the encoder accepts."""

    def strange(self, words: Iterable[str]) -> list[str]:
        """Return the words that are not in the vocabulary."""

    def accept_all(self) -> None:
        """Refuse no caption from now on: cut long ones, and drop unknown words."""


class TokenEncoder(TextEncoder, Protocol):
    """A frozen encoder with a tokenizer; a caption is cut after `max_length` tokens."""

    max_length: int

    def tokens(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption, before any cut."""

    def cut(self, caption: str) -> str:
        """Return the end of a caption that the encoder does not see."""
