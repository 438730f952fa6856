"""What of a reply is a caption."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.caption.reply import Failed, Judged, Reply, judge, strip_boilerplate

STRIPPED = {
    "The video shows a man walking his dog.": "A man walking his dog.",
    "the video depicts two cats": "Two cats",
    "This clip depicts a red car, then a blue one.": "A red car, then a blue one.",
    "In this video, we see a child on a swing.": "A child on a swing.",
    "In this video, a child is on a swing.": "A child is on a swing.",
    "In the video we can see waves.": "Waves.",
    "In the clip, there is a boat.": "There is a boat.",
    "Here is a caption: A boat at sea.": "A boat at sea.",
    "Here's a short description of the video:\n\nA boat at sea.": "A boat at sea.",
    'Sure! Here is a caption for this clip:\n\n"A boat at sea."': "A boat at sea.",
    "Certainly. The footage captures a storm over a town.": "A storm over a town.",
    "**Caption:** A boat at sea.": "A boat at sea.",
    "Caption: The scene shows **a boat** at sea.": "A boat at sea.",
    "# Video description\n\nThe frames show a boat.": "A boat.",
    "The video frames depict a boat.": "A boat.",
    "These images show a boat.": "A boat.",
    "The short video clip features a singer on stage.": "A singer on stage.",
    "The video appears to show a parade.": "A parade.",
    "Based on the provided frames, a boat sails by.": "A boat sails by.",
    "Throughout the video, the boat sails.": "The boat sails.",
    "We see a boat.": "A boat.",
    "You can see a boat.": "A boat.",
    "A video of a cat on a sofa.": "A cat on a sofa.",
    "A short clip showing a cat on a sofa.": "A cat on a sofa.",
    "This is a video of a cat on a sofa.": "A cat on a sofa.",
    "<think>Frames 1 to 3: a cat.\nA sofa.</think>\n\nA cat on a sofa.": "A cat on a sofa.",
    "  'A cat\n on a   sofa.' ": "A cat on a sofa.",
    "“A cat on a sofa.”": "A cat on a sofa.",
    "A cat on a sofa. Let me know if you need more details!": "A cat on a sofa.",
    "The video shows élan.": "Élan.",
}
KEPT = [
    "A man walks his dog.",
    "The video game character jumps over a wall.",
    "In this video game, a knight fights a dragon.",
    "The video camera on the tripod is red.",
    "The video display on the wall is bright.",
    "The clip-on tie is blue.",
    "The scene is set in a forest at night.",
    "The image on the screen shows a dog.",
    "A picture of a cat hangs above the sofa.",
    "A video of a storm shows houses under water on an old television.",
    "The camera pans left over a market.",
    "The video shows that glaciers melt.",
    "The footage shows signs of age.",
    "Okay-looking shoes stand on a shelf.",
    "Surely a storm is coming.",
    "Here is a dog that runs.",
    "iPhone on a table.",
    '"Stop" says a sign, and another one "Go"',
    "Frame after frame, a flower opens.",
    "Seen from above, a river bends.",
    "A sign reads: I cannot swim.",
]


@pytest.mark.parametrize("reply", STRIPPED)
def test_boilerplate_is_stripped(reply):
    assert strip_boilerplate(reply) == STRIPPED[reply]


@pytest.mark.parametrize("caption", KEPT)
def test_what_is_no_boilerplate_is_kept_to_the_letter(caption):
    assert strip_boilerplate(caption) == caption
    assert judge(Reply(caption), 100) == Judged("captioned", text=caption)


@pytest.mark.parametrize(
    ("reply", "end"),
    [
        ("no video " * 100_000, "too long"),
        ("we see " * 100_000, "too long"),
        ("<think>no video</think>" * 100_000 + "A cat.", "A cat."),
        ("<think>" + "hm, a cat. " * 100_000 + "</think>I'm sorry, I can't help with that.", "refusal"),
    ],
)
def test_a_reply_of_megabytes_is_judged_in_seconds(reply, end):
    begun = time.process_time()
    found = judge(Reply(reply), 200)
    assert (found.text or found.reason) == end
    assert time.process_time() - begun < 5


@given(st.text(st.sampled_from("the video shows A,.: '\"“”\n*#")))
def test_stripping_ends_in_one_line_and_is_done_in_one_go(reply):
    once = strip_boilerplate(reply)
    assert "\n" not in once
    assert once == once.strip()
    assert len(once) <= len(reply)


REFUSED = {
    "": "empty",
    " \n ": "empty",
    "The video shows": "empty",
    "<think>Well, there is a": "empty",
    "I'm sorry, but I can't help with that.": "refusal",
    "I’m unable to describe this video.": "refusal",
    "I cannot see any frames.": "refusal",
    "Sorry, as a model I see nothing.": "refusal",
    "As an AI language model, I see no pictures.": "refusal",
    "It seems that no images were provided.": "refusal",
    "Please provide the frames of the video.": "refusal",
    "a " * 21: "too long",
}


@pytest.mark.parametrize("reply", REFUSED)
def test_what_is_no_caption_is_refused_with_the_reason_and_the_reply(reply):
    assert judge(Reply(reply), 20) == Judged("refused", REFUSED[reply], detail=reply)


def test_a_reply_that_was_cut_off_or_withheld_is_refused():
    assert judge(Reply("A cat sits on a", "length"), 20).reason == "cut off"
    assert judge(Reply("A cat.", "refusal"), 20).reason == "refusal"
    assert judge(Failed("timeout", True, "slow"), 20) == Judged("failed", "timeout", True, detail="slow")


def test_a_caption_has_no_control_characters():
    """No reader takes a NUL in a text: one such reply would end every later call."""
    assert judge(Reply("A red\0 ball\x1b[31m \ufeffmoves."), 20) == Judged("captioned", text="A red ball [31m moves.")


def test_a_reply_without_spaces_may_be_too_long_too():
    assert judge(Reply("球" * 800), 20).status == "captioned"
    assert judge(Reply("球" * 801), 20).reason == "too long"
