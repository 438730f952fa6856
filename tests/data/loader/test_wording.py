"""Captions against a text encoder before the first step."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.material.made_clips import sample
from videodiff.data.loader.captions import EVEN, CaptionMix
from videodiff.data.loader.clips import Clips
from videodiff.data.loader.wording import check_captions, dataset_words, fit_captions, longest_caption
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter
from videodiff.text.words import Words

LONG = " ".join(["word"] * 40)


def write(root: Path, *captions: tuple[str, ...]) -> Path:
    """Write a clip for each of these, with these captions."""
    with ShardWriter(root) as writer:
        for number, own in enumerate(captions):
            writer.add(f"clip{number}", *sample(number, captions=own))
    return root


def clips(root: Path, frames: int = 4, **how: object) -> list[Clips]:
    return [Clips(Manifest.load(root), [Bucket(frames, 16, 16)], skip=True, any_size=True, **how)]


def forget_words(root: Path) -> Path:
    """Make the manifest one of old, which does not count words."""
    table = pq.read_table(root / "manifest.parquet")
    pq.write_table(table.drop(["words"]), root / "manifest.parquet")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three clips: a short caption, a long one, and a short one first with a long one after it."""
    return write(tmp_path_factory.mktemp("long"), ("a word",), (LONG,), ("word", LONG))


def test_a_caption_in_a_csv_is_checked_too(tmp_path: Path) -> None:
    """Training draws it like one of the other files beside a video."""
    with ShardWriter(tmp_path) as writer:
        members, row = sample(0, captions=("a word",))
        writer.add("clip0", members | {"csv": f"caption\n{LONG}\n".encode()}, row)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: clip0: caption has 40 words, expected at most 31"):
        check_captions(clips(tmp_path), EVEN, Words(["a", "word"], 8, 32))


def test_the_manifest_counts_the_words_of_the_longest_caption(root: Path) -> None:
    assert Manifest.load(root).column("words").tolist() == [2, 40, 40]
    assert longest_caption(Manifest.load(root)) == 40
    assert dataset_words(Manifest.load(root)) == ["word", "a"]


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "of old"])
def test_a_long_caption_is_refused_with_its_clips_and_the_key(root: Path, tmp_path: Path, counted: bool) -> None:
    if not counted:
        root = forget_words(write(tmp_path, ("a word",), (LONG,), ("word", LONG)))
    with pytest.raises(
        ValueError,
        match=rf"^{root}: clip1: caption has 40 words, expected at most 31: .*; clip2 too \(text\.max_words=null",
    ):
        check_captions(clips(root), EVEN, Words(["a", "word"], 8, 32))
    assert check_captions(clips(root), EVEN, Words(["a", "word"], 8, 41)) == []
    assert longest_caption(Manifest.load(root)) == 40


def test_a_long_caption_is_cut_by_option_and_counted(root: Path) -> None:
    text = Words(["a", "word"], 8, 32, long="cut")
    assert check_captions(clips(root), EVEN, text) == [
        f"{root}: 2 clips have a caption of more than 31 words, which is cut"
    ]
    assert text([LONG])[1].sum() == 32


def test_a_caption_that_is_never_drawn_may_be_long(root: Path) -> None:
    text = Words(["a", "word"], 8, 32)
    assert check_captions(clips(root), CaptionMix(lengths={0: 1, 40: 0}), text) == []
    with pytest.raises(ValueError, match=r"clip1: caption has 40 words, expected at most 31: '[^']*' \("):
        check_captions(clips(root, fixed=True), EVEN, text)


def test_an_unknown_word_is_refused_or_dropped_with_its_clip(tmp_path: Path) -> None:
    root = write(tmp_path, ("a word",), ("a wrod",), ("a zebra",))
    with pytest.raises(
        ValueError,
        match=rf"^{root}: clip1: .*found the word 'wrod', .*nearest: 'word'\); clip2 too \(text\.vocabulary=null",
    ):
        check_captions(clips(root), EVEN, Words(["a", "word"], 8, 8))
    text = Words(["a", "word"], 8, 8, unknown="drop")
    assert check_captions(clips(root), EVEN, text) == [
        f"{root}: 2 clips have a caption with words that the encoder does not know and drops"
    ]
    assert text(["a zebra"])[1].sum() == 2


def test_words_that_no_caption_has_disturb_nobody(tmp_path: Path) -> None:
    root = write(tmp_path, ("a word",))
    (root / "words.txt").write_text("a\nword\nunicorn\n")
    assert check_captions(clips(root), EVEN, Words(["a", "word"], 8, 8)) == []
    (root / "words.txt").unlink()
    with pytest.raises(ValueError, match="found the word 'word'"):
        check_captions(clips(root), EVEN, Words(["a"], 8, 8))


def test_captions_that_only_measure_lose_what_the_encoder_does_not_know() -> None:
    text = Words(["a", "red", "ball"], 8, 4)
    fitted, said = fit_captions(["A red ball.", "a blue ball", "red red red red", ""], text)
    assert fitted == ["A red ball.", "a ball", "red red red", ""]
    assert said.startswith("2 of 4 captions are longer than 3 words or have words that training does not know (blue)")
    assert all(text.fault(caption) is None for caption in fitted)
    assert fit_captions(["a red ball"], text) == (["a red ball"], "")


class Tokens:
    """Stands for a pretrained encoder: a token a letter, at most ten."""

    unit, max_length = "tokens", 10

    def tokens(self, captions: list[str]) -> list[int]:
        return [len(caption) for caption in captions]


def test_what_a_pretrained_encoder_cuts_is_counted(root: Path) -> None:
    assert check_captions(clips(root), EVEN, Tokens()) == [
        f"{root}: 2 of 4 captions read have more than text.max_length = 10 tokens (the longest 199) and are cut"
    ]
