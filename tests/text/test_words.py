from __future__ import annotations

import pytest
import torch
from torch import nn

from videodiff.text.words import Words, read_words
from videodiff.words import count_text, split_words

VOCABULARY = ["a", "red", "green", "ball", "moves", "left", "don't"]
DIRECTIONS = ("left", "right", "up", "down")


def test_words_are_lower_case_and_without_punctuation():
    assert split_words("A Red-ball, don't_move: 3!") == ["a", "red", "ball", "don't", "move", "3"]


def test_a_number_of_things_has_their_plural_where_they_are_several():
    assert [count_text(count, "shard") for count in (0, 1, 1024)] == ["0 shards", "1 shard", "1,024 shards"]
    assert [count_text(2, one) for one in ("process", "micro-batch", "box")] == [
        "2 processes",
        "2 micro-batches",
        "2 boxes",
    ]
    assert [count_text(count, "clip has", "clips have") for count in (1, 2)] == ["1 clip has", "2 clips have"]


def test_the_mask_is_true_at_the_start_token_and_the_words():
    text, mask = Words(VOCABULARY, width=8, max_words=6)(["a red ball", "left"])
    assert text.shape == (2, 6, 8)
    assert mask.tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]


def test_an_empty_caption_is_the_start_token_alone():
    _, mask = Words(VOCABULARY, max_words=4)(["", "  ...  "])
    assert mask.tolist() == [[True, False, False, False]] * 2


def test_the_same_word_at_another_place_has_another_feature_and_the_order_matters():
    words = Words(VOCABULARY, width=8, near=0)
    text, _ = words(["red green", "green red"])
    assert (text[0] - text[1])[1:3].abs().min() > 0
    torch.testing.assert_close(text[0] - words.place.weight, (text[1] - words.place.weight)[[0, 2, 1, *range(3, 32)]])


def test_a_word_sees_its_neighbours_on_each_side_and_no_others():
    words = Words(VOCABULARY, width=8, max_words=8, near=2)
    (one, other), _ = words(["a red ball moves left a ball", "a green ball moves left a ball"])
    # The start token is word 0, the colour word 2.
    assert (one != other).any(-1).tolist() == [True] * 5 + [False] * 3
    with pytest.raises(ValueError, match=r"text\.near: found -1, expected 0 or more words"):
        Words(VOCABULARY, near=-1)


def test_without_neighbours_the_weights_are_those_of_older_runs():
    assert set(Words(VOCABULARY, near=0).state_dict()) == {"word.weight", "place.weight"}


# Who takes one of two direction words at random, of four, is right in 1/2 + 1/2 x 1/4 of the cases.
@pytest.mark.parametrize(("near", "least", "most"), [(0, 0.55, 0.70), (4, 0.95, 1.0)])
def test_one_look_at_a_caption_tells_which_ball_moves_where_if_words_see_their_neighbours(near, least, most):
    generator, colours = torch.Generator().manual_seed(0), ("red", "green", "blue", "yellow")
    torch.manual_seed(0)
    words = Words([*colours, *DIRECTIONS, "a", "small", "large", "ball", "moves", "and"], 32, 16, near=near)
    ask, key, value, say = nn.Embedding(4, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)
    parts = [words, ask, key, value, say]
    adam = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=3e-3)
    right = []
    for _ in range(150):
        asked, ways, captions = two_balls(64, colours, generator)
        text, mask = words(captions)
        scores = torch.einsum("b d, b l d -> b l", ask(asked), key(text)).masked_fill(~mask, -torch.inf)
        found = say(torch.einsum("b l, b l d -> b d", (scores / 32**0.5).softmax(-1), value(text)))
        adam.zero_grad()
        nn.functional.cross_entropy(found, ways).backward()
        adam.step()
        right.append((found.argmax(-1) == ways).float().mean())
    assert least <= torch.stack(right[-50:]).mean() <= most


def two_balls(n, colours, generator):
    """Return for n captions of two balls which colour is asked for, where its ball moves, and the captions."""
    asked, ways, captions = [], [], []
    for _ in range(n):
        names = torch.randperm(4, generator=generator)[:2].tolist()
        moves = torch.randint(4, (2,), generator=generator).tolist()
        phrases = [f"a small {colours[c]} ball moves {DIRECTIONS[d]}" for c, d in zip(names, moves, strict=True)]
        one = int(torch.randint(2, (), generator=generator))
        asked.append(names[one]), ways.append(moves[one]), captions.append(" and ".join(phrases))
    return torch.tensor(asked), torch.tensor(ways), captions


def test_words_are_trained():
    words = Words(VOCABULARY, width=8, near=0)
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
