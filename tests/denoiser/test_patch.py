"""Patches: clips to tokens and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videodiff.denoiser.patch import patchify, unpatchify

small = st.integers(1, 3)


@given(b=small, c=small, t=small, h=small, w=small, patch=st.tuples(small, small, small))
@settings(deadline=None, max_examples=40)
def test_tokens_give_back_the_clip_to_the_bit(b: int, c: int, t: int, h: int, w: int, patch: tuple[int, int, int]):
    pt, ph, pw = patch
    z = torch.randn(b, c, t * pt, h * ph, w * pw)
    tokens = patchify(z, patch)
    assert tokens.shape == (b, t, h * w, pt * ph * pw * c)
    assert torch.equal(unpatchify(tokens, patch, h), z)


def test_a_token_holds_its_own_patch_and_tokens_run_over_rows_then_columns() -> None:
    z = torch.arange(2 * 3 * 4 * 6.0).view(1, 2, 3, 4, 6)
    tokens = patchify(z, (1, 2, 3))
    second_row_first_column = z[0, :, 1, 2:4, 0:3]
    assert tokens[0, 1, 2].tolist() == second_row_first_column.permute(1, 2, 0).flatten().tolist()


def test_a_clip_that_does_not_divide_into_patches_is_an_error() -> None:
    with pytest.raises(ValueError, match="clip: found h = 9, expected a multiple of the patch's 2"):
        patchify(torch.zeros(1, 3, 2, 9, 8), (1, 2, 2))
