"""Which caption is trained on."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.material.made_clips import sample
from videodiff.data.loader.captions import EVEN, CaptionMix, check_origins, draw_caption
from videodiff.data.loader.clips import Clips, Reader
from videodiff.data.loader.datamodule import clip_data
from videodiff.data.order.arithmetic import draw
from videodiff.data.order.buckets import Bucket
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import ShardWriter, Text, read_texts

SHORT, LONG, ALT = Text("a dog", "qwen"), Text("a brown dog runs over wet sand", "qwen"), Text("dog.jpg stock", "web")


def drawn(mix: CaptionMix, captions=(SHORT, LONG, ALT), count: int = 3000) -> Counter:
    return Counter(draw_caption(captions, mix, 0, epoch, 7, 1) for epoch in range(count))


texts = st.lists(st.builds(Text, st.text("ab ", min_size=1), st.sampled_from(["", "web", "qwen"])), min_size=1)


@given(texts, st.integers(0, 9), st.integers(0, 9), st.integers(0, 10**6))
def test_without_weights_the_draw_is_that_of_old(captions, seed, epoch, index):
    key = (seed, epoch, index, 1)
    old = captions[draw(len(captions), *key)].text
    assert draw_caption(captions, EVEN, *key) == old
    assert draw_caption(captions, CaptionMix({"web": 2, "qwen": 2}, 2.0, {5: 1}), *key) == old


@given(texts, st.dictionaries(st.sampled_from(["", "web", "qwen"]), st.floats(0, 1e6)), st.integers(0, 10**6))
def test_a_draw_depends_on_the_key_alone_and_never_gives_a_caption_of_weight_0(captions, weights, index):
    mix = CaptionMix(weights, lengths={2: 0.5, 4: 0})
    found = draw_caption(captions, mix, 0, 1, index, 1)
    assert found == draw_caption(captions, mix, 0, 1, index, 1)
    able = [caption.text for caption in captions if mix.weigh(caption)]
    assert found in able if able else found == ""


def test_captions_are_drawn_in_proportion_to_the_weight_of_their_origin():
    found = drawn(CaptionMix({"qwen": 3, "web": 1}))
    assert found[SHORT.text] / 3000 == pytest.approx(3 / 7, abs=0.03)
    assert found[ALT.text] / 3000 == pytest.approx(1 / 7, abs=0.03)
    assert drawn(CaptionMix({"qwen": 1}, other=0)).keys() == {SHORT.text, LONG.text}


def test_captions_are_drawn_in_proportion_to_the_weight_of_their_length():
    found = drawn(CaptionMix(lengths={0: 4, 3: 1}))
    assert found[LONG.text] / 3000 == pytest.approx(1 / 9, abs=0.03)
    assert drawn(CaptionMix(lengths={7: 0})).keys() == {SHORT.text, ALT.text}
    assert CaptionMix(lengths={3: 5}).weigh(SHORT) == 1
    assert CaptionMix({"qwen": 2}, lengths={7: 5, 2: 3}).weigh(LONG) == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": {"qwen": -1}}, "captions.weights: found qwen: -1"),
        ({"weights": {"qwen": "x"}}, "captions.weights: found qwen: 'x'"),
        ({"other": float("inf")}, "captions.other"),
        ({"lengths": {2: float("nan")}}, "captions.lengths: found 2: nan"),
        ({"lengths": {"many": 1}}, "captions.lengths: found 'many', expected a number of words"),
    ],
)
def test_a_weight_that_is_none_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        CaptionMix(**wrong)


def test_origins_that_do_not_match_the_captions_are_not_believed():
    members = {"txt": b"one", "json": json.dumps({"captions": ["one", "two"], "caption_origins": ["web"]}).encode()}
    assert read_texts(members) == [Text("one"), Text("two")]
    assert read_texts({"txt": b"one"}) == [Text("one")]


@pytest.fixture
def dataset(tmp_path):
    """Return a dataset of two clips with two captions each, by web and qwen."""
    with ShardWriter(tmp_path / "data") as writer:
        for number in range(2):
            members, row = sample(number, captions=(f"alt {number}", f"long caption {number}"))
            notes = json.loads(members["json"]) | {"caption_origins": ["web", "qwen"]}
            writer.add(f"clip{number}", {**members, "json": json.dumps(notes).encode()}, row)
    return tmp_path / "data"


def test_clips_are_delivered_with_the_captions_that_the_weights_ask_for(dataset):
    manifest = Manifest.load(dataset)
    assert manifest.caption_origins == ["qwen", "web"]

    def captions(mix=EVEN, fixed=False):
        clips = Clips(manifest, [Bucket(4, 32, 32)], fixed=fixed, any_size=True)
        reader = Reader([manifest.root], captions=mix)
        return {reader.alone(clips.task(1, epoch=epoch))["caption"] for epoch in range(20)}

    assert captions() == {"alt 1", "long caption 1"}
    assert captions(CaptionMix({"web": 0})) == {"long caption 1"}
    assert captions(CaptionMix({"web": 0}), fixed=True) == {"alt 1"}


def test_a_weight_for_an_origin_that_no_dataset_has_is_an_error_that_names_those_there_are(dataset, tmp_path):
    how = {"frames": 4, "height": 32, "width": 32, "global_batch": 2}
    module = clip_data(root=str(dataset), **how, captions={"weights": {"qwn": 3}})
    with pytest.raises(ValueError, match=r"weights: found 'qwn', expected origins of captions in the data: qwen, web"):
        module.check()
    clip_data(root=str(dataset), **how, captions={"weights": {"qwen": 3}}).check()
    # Where a dataset does not say who wrote its captions, any name may be meant.
    check_origins(CaptionMix({"qwn": 3}), [["qwen"], None])
