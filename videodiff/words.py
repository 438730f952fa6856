"""The words of captions: one rule for the data, which counts them, and for the text encoder, which learns them."""

from __future__ import annotations

import re


def split_words(caption: str) -> list[str]:
    """Return the lower-case words of a caption, punctuation dropped."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", caption.lower())


def parse_words(data: bytes, where: str) -> list[str]:
    """Return the words in the content of a words.txt, one per line; `where` names the file in errors."""
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
