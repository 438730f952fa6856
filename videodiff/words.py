"""Words: those of captions, by one rule for the data and for the text encoder, and those behind a number of things."""

from __future__ import annotations

import re


def count_text(count: int, one: str, several: str = "") -> str:
    """Return a number of things: `1 shard`, `1,024 shards`; `several` where not the last word alone ends otherwise."""
    ending = "es" if one.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {one if count == 1 else several or one + ending}"


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
