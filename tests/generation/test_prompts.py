"""Prompts that an encoder does not take are an error before anything is sampled."""

from __future__ import annotations

import pytest

from videodiff.generation.prompts import check_prompts
from videodiff.text.words import Words

TEXT = Words(["a", "red", "ball"], 8, 4)


def test_prompts_of_known_words_pass_without_a_remark() -> None:
    assert check_prompts("prompts", ["a red ball", "", "ball"], TEXT) == []


@pytest.mark.parametrize(("prompts", "match"), [(["a ball", 3], r"here\[1\]: found 3, expected text"),
                                                (["a green ball"], r"here\[0\]: .*green")])  # fmt: skip
def test_a_prompt_that_is_not_taken_is_named_by_setting_and_number(prompts: list[object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_prompts("here", prompts, TEXT)


def test_a_prompt_that_is_cut_is_told() -> None:
    class Tokens:
        unit, max_length = "tokens", 3

        def tokens(self, prompts: list[str]) -> list[int]:
            return [len(prompt.split()) for prompt in prompts]

    assert check_prompts("prompts", ["a b c", "a b c d"], Tokens()) == [
        "prompts[1]: found 4 tokens, cut at text.max_length = 3"
    ]
