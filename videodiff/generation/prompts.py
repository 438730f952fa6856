"""Check before sampling whether the text encoder accepts the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videodiff.data.loader.wording import fit_captions
from videodiff.text.protocol import TextEncoder


def check_prompts(name: str, prompts: Sequence[Any], text: TextEncoder) -> list[str]:
    """Return a remark for each prompt that is cut; raise if one is not text, or has words that `text` does not know.

    `name` is the key of the prompts in the configuration.
    """
    remarks = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{number}]: found {prompt!r}, expected text")
        if text.unit == "words" and (fault := text.fault(prompt)):
            raise ValueError(f"{name}[{number}]: {fault.reason}")
        if left_out := fit_captions([prompt], text)[1]:
            remarks.append(f"{name}[{number}]: {left_out}")
    if text.unit == "tokens":
        for number, tokens in enumerate(text.tokens(prompts)):
            if tokens > text.max_length:
                remarks.append(f"{name}[{number}]: found {tokens} tokens, cut at text.max_length = {text.max_length}")
    return remarks
