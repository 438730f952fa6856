import pytest
from made_clips import sample, write_dataset

from videodiff.data.inspection import describe_dataset, format_description
from videodiff.data.shards import ShardWriter


@pytest.fixture
def description(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.add("a", *sample(0, 8, captions=("a red ball moves",)))
        writer.add("b", *sample(1, 20, captions=("a blue ball", "two words")))
        writer.add("c", *sample(2, 8, captions=()))
    return describe_dataset(tmp_path)


def test_a_description_counts_clips_sizes_and_hours(description):
    assert (description["samples"], description["shards"]) == (3, 1)
    assert description["hours"] == pytest.approx((8 + 20 + 8) / 5 / 3600)
    assert (description["sizes"], description["frames"], description["fps"]) == ({"32x32": 3}, {8: 2, 20: 1}, {"5": 3})
    assert (description["sources"], description["licences"]) == ({"made": 3}, {"CC0-1.0": 3})


def test_a_description_tells_of_the_captions(description):
    assert (description["captions"], description["without_caption"]) == (3, 1)
    assert description["caption_words"] == (2, 3.0, 4)
    assert description["top_words"]["ball"] == pytest.approx(2 / 3)
    assert description["first_captions"] == ["a red ball moves", "a blue ball", "two words"]


def test_the_lines_show_what_matters(description):
    text = format_description(description)
    assert "3 in 1 shards" in text
    assert "8 (2), 20 (1)" in text
    assert '"a blue ball"' in text
    assert "3 of 2 to 4 words (median 3); 1 missing" in text


def test_of_a_large_dataset_only_some_captions_are_read(tmp_path):
    write_dataset(tmp_path, count=9)
    description = describe_dataset(tmp_path, captions_read=3)
    assert description["first_captions"] == [f"a red square number {number}" for number in (0, 4, 8)]
    assert description["captions"] == 9
