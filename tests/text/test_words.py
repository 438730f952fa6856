from __future__ import annotations

import pytest
import torch

from videodiff.text.words import Words, read_words
from videodiff.words import split_words

VOCABULARY = ["a", "red", "green", "ball", "moves", "left", "don't"]


def test_words_are_lower_case_and_without_punctuation():
    assert split_words("A Red-ball, don't_move: 3!") == ["a", "red", "ball", "don't", "move", "3"]


def test_the_mask_is_true_at_the_start_token_and_the_words():
    text, mask = Words(VOCABULARY, width=8, max_words=6)(["a red ball", "left"])
    assert text.shape == (2, 6, 8)
    assert mask.tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]


def test_an_empty_caption_is_the_start_token_alone():
    _, mask = Words(VOCABULARY, max_words=4)(["", "  ...  "])
    assert mask.tolist() == [[True, False, False, False]] * 2


def test_the_same_word_at_another_place_has_another_feature_and_the_order_matters():
    words = Words(VOCABULARY, width=8)
    text, _ = words(["red green", "green red"])
    assert (text[0] - text[1])[1:3].abs().min() > 0
    torch.testing.assert_close(text[0] - words.place.weight, (text[1] - words.place.weight)[[0, 2, 1, *range(3, 32)]])


def test_words_are_trained():
    words = Words(VOCABULARY, width=8)
    words(["a red ball"])[0].sum().backward()
    touched = words.word.weight.grad.abs().sum(1) > 0
    assert Words.trainable
    assert touched.nonzero().flatten().tolist() == [1, *(words.index[w] for w in ("a", "red", "ball"))]


def test_an_unknown_word_names_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"found the word 'gren', expected one of the 7 words .*nearest: 'green'"):
        Words(VOCABULARY)(["a gren ball"])


def test_a_caption_that_is_too_long_tells_its_length_and_the_limit():
    assert len(Words(VOCABULARY, max_words=4).encode("a red ball")) == 4
    with pytest.raises(ValueError, match="caption has 4 words, expected at most 3: 'a red ball moves'"):
        Words(VOCABULARY, max_words=4)(["a red ball moves"])


def test_no_words_are_an_error():
    with pytest.raises(ValueError, match=r"text\.vocabulary: found no words"):
        Words([])


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_the_vocabulary_is_read_from_a_file_with_one_word_a_line(tmp_path, kind):
    path = tmp_path / "words.txt"
    path.write_text("ball\nred\n\nélan\n", encoding="utf-8")
    assert Words(kind(path)).vocabulary == ["ball", "red", "élan"]


def test_a_missing_file_of_words_is_an_error_that_names_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"text\.vocabulary: found no file .*words\.txt, expected .*one word a line"
    ):
        Words(str(tmp_path / "words.txt"))


@pytest.mark.parametrize("line", ["new york", "Red", "<script>", "x" * 3 + "!"])
def test_a_line_that_no_caption_can_match_is_an_error_that_names_the_line(tmp_path, line):
    path = tmp_path / "words.txt"
    path.write_text(f"ball\n{line}\n")
    with pytest.raises(ValueError, match=r"words\.txt:2: found .*, expected one word in lower case"):
        read_words(path)


def test_a_file_of_words_that_is_not_utf8_is_an_error_that_names_it(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"words\.txt: found bytes that are not UTF-8"):
        read_words(tmp_path / "words.txt")
