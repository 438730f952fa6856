"""Rules: a clip has the first reason that holds, an input is counted once, and of equal clips the first is kept."""

from __future__ import annotations

from typing import Any

import pytest

from data_prep.books.candidate import Candidate
from data_prep.books.request import Caption, ClipRequest, Place
from data_prep.choose.rules import CAPTIONS, Decision, Rules, decide, is_taken


def clip(request: str, number: int, near: int | None = 0, **more: Any) -> Candidate:
    """Return a clip of a request whose file has this number, and whose pictures differ in so many bits from others."""
    fields = {"licence": more.pop("licence", "CC0"), "parent": more.pop("parent", ""), "name": more.pop("name", "")}
    texts = tuple(Caption(text, "hand") for text in more.pop("captions", ("a ball",)))
    source = ClipRequest(Place("list.jsonl", 1), f"{request}.mp4", captions=texts, **fields)
    bits = b"" if near is None else ((1 << near) - 1).to_bytes(32, "big")
    known = {"scores": {"motion": 1.0}, "lost": 0, **more}
    digest = number.to_bytes(32, "little")
    return Candidate(source, f"{request}-{number}", (0.0, 1.0), 8, digest, bits, captions=texts, **known)


def reasons(*clips: Candidate, **rules: Any) -> list[str]:
    return decide(clips, Rules(**rules)).reasons


def test_the_first_of_equal_clips_that_are_left_is_kept() -> None:
    still = {"filter": {"motion": {"min": 0.5}}}
    clips = [clip("a", 1, scores={"motion": 0.1}), clip("b", 1), clip("c", 2), clip("d", 1)]
    assert reasons(*clips, **still) == ["motion below 0.5", "", "", "duplicate"]


def test_near_duplicates_differ_in_so_many_bits_at_most_and_need_a_hash() -> None:
    clips = [clip("a", 1, 0), clip("b", 2, 8), clip("c", 3, None), clip("d", 4, None)]
    assert reasons(*clips, near=8) == ["", "near duplicate", "", ""]
    assert reasons(*clips, near=7) == reasons(*clips, near=None) == [""] * 4
    # What is left out for another reason hides no other clip.
    clips = [clip("a", 1, 0, licence="none"), clip("b", 2, 0), clip("c", 3, 99), clip("d", 4, 99)]
    assert reasons(*clips, near=8, licences=["CC0"]) == ["licence", "", "", "near duplicate"]


def test_of_copies_one_that_has_a_caption_is_kept() -> None:
    clips = [clip("a", 1, None, captions=()), clip("b", 1, None), clip("c", 1, None), clip("d", 2, None, captions=())]
    assert reasons(*clips) == ["duplicate", "", "duplicate", ""]
    clips = [clip("a", 1, 0, captions=()), clip("b", 2, 8), clip("c", 3, 99, captions=()), clip("d", 4, 99)]
    assert reasons(*clips, near=8) == ["near duplicate", "", "near duplicate", ""]


def test_a_clip_has_the_first_reason_in_the_order_of_the_rules() -> None:
    wrong = {"licence": "none", "scores": {"motion": 0.1}, "captions": ()}
    rules = {"licences": ["CC0"], "filter": {"motion": {"min": 0.5}}, "require_caption": True}
    long = "\u00e9" * (CAPTIONS // 2)
    assert reasons(clip("a", 1, **wrong), taken=frozenset({"a.mp4"}), **rules) == ["takedown"]
    for mended, reason in (("licence", "licence"), ("scores", "motion below 0.5"), ("captions", "no caption")):
        assert reasons(clip("a", 1, **wrong), **rules) == [reason]
        del wrong[mended]
    assert reasons(clip("a", 1, **wrong), **rules) == [""]
    # The limit of captions is of bytes, of all together.
    assert reasons(clip("a", 1, captions=(long,)), clip("b", 2, captions=(long, "x"))) == ["", "captions too long"]
    assert reasons(clip("a", 1, captions=())) == [""]


def test_an_input_is_ok_if_one_of_its_clips_is_kept_and_else_has_the_reason_of_its_first() -> None:
    slow, fast = {"scores": {"motion": 0.1}}, {"filter": {"motion": {"min": 0.5}}}
    clips = [
        *(clip("a", 1, lost=2, **slow), clip("a", 2, lost=2)),
        *(clip("b", 2, lost=1), clip("b", 3, lost=1, **slow)),
        clip("c", 4, **slow),
    ]
    found = decide(clips, Rules(**fast))
    assert found.reasons == ["motion below 0.5", "", "duplicate", "motion below 0.5", "motion below 0.5"]
    assert found.inputs == {"": 1, "duplicate": 1, "motion below 0.5": 1}
    assert (found.lost, found.kept) == (3, 1)
    assert found.left_out == {"duplicate": 1, "motion below 0.5": 3}
    assert decide([], Rules()) == Decision([], {}, 0)


@pytest.mark.parametrize("by", ["id", "source", "parent", "name"])
def test_a_request_is_taken_down_by_any_of_its_names(by: str) -> None:
    request = clip("a", 1, parent="film", name="film.3").request
    assert is_taken(request, frozenset({"other", getattr(request, by)}))
    assert not is_taken(request, frozenset({"other", ""}))
    assert not is_taken(clip("a", 1).request, frozenset({""}))


def test_a_clip_is_taken_down_by_its_own_id() -> None:
    assert reasons(clip("a", 1), clip("a", 2), taken=frozenset({"a-2"})) == ["", "takedown"]


@pytest.mark.parametrize("near", [-1, 257])
def test_no_two_hashes_differ_in_more_bits_than_they_have(near: int) -> None:
    assert (Rules(near=0).near, Rules(near=256).near) == (0, 256)
    with pytest.raises(ValueError, match=r"duplicates\.near: found"):
        Rules(near=near)
