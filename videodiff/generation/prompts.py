"""What a text encoder takes of prompts, checked before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videodiff.data.loader.wording import fit_captions
from videodiff.text.words import Words


def check_prompts(name: str, prompts: Sequence[Any], text: Any) -> list[str]:
    """Return a remark for each prompt that is cut; raise where one is no text, or has words that `text` lacks.

    `name` is the setting that holds the prompts.
    """
    remarks = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{number}]: found {prompt!r}, expected text")
        if isinstance(text, Words) and (fault := text.fault(prompt)):
            raise ValueError(f"{name}[{number}]: {fault}")
        if left_out := fit_captions([prompt], text)[1]:
            remarks.append(f"{name}[{number}]: {left_out}")
    if hasattr(text, "tokens"):
        for number, tokens in enumerate(text.tokens(prompts)):
            if tokens > text.max_length:
                remarks.append(f"{name}[{number}]: found {tokens} tokens, cut at text.max_length = {text.max_length}")
    return remarks
