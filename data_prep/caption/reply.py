"""Turn the reply of a captioner into a caption: strip boilerplate, recognise refusals."""

from __future__ import annotations

import re
from typing import NamedTuple

from videodiff.data.samples.sidecars import tidy

# No language has longer words on average; some write them without spaces.
LETTERS = 40
ONE = "(?:video clip|video|clip|footage|scene|sequence|recording|image|picture|frame)"
MANY = "(?:video frames|videos|clips|scenes|sequences|images|pictures|frames|series of (?:frames|images|pictures))"
KIND = "(?:(?:short|brief|provided|given|entire) )?"
SEE = "(?:we|you|one|i)(?: can)? see\\b"
VERBS = ("show", "showcase", "depict", "feature", "capture", "present", "display", "portray", "illustrate")
SHOW, SHOWS = f"(?:{'|'.join(VERBS)})", f"(?:{'s|'.join(VERBS)}s)"
SHOWING = "(?:showing|showcasing|depicting|featuring|capturing|presenting|displaying|portraying|illustrating)"
# What "shows" may go on with that is no thing seen.
NOT_SEEN = r"(?! (?:that|how|why|off|up|signs?)\b)"
ABOUT = r"\b(?:captions?|descriptions?|summary|video|clip|prompt|frames)\b"
# Openings that say nothing of the clip, tried in this order until none fits; what follows becomes the sentence.
OPENINGS = [
    r"(?:<think>.*?</think>\s*)+",
    r"<think>.*",  # cut off while thinking
    r"#+ [^\n]*\n",
    r"(?:sure|certainly|of course|absolutely|okay|ok)(?: thing)?[!,.:](?=\s)",
    rf"here(?:'s| is| are)\b[^.:\n]{{0,100}}{ABOUT}[^.:\n]{{0,100}}:",
    r"(?:the )?(?:video |clip )?(?:caption|description|summary|answer|prompt):",
    rf"(?:based on|judging by|from|according to) (?:the|these|this) {KIND}(?:{MANY}|{ONE})(?: provided| given)?,",
    rf"(?:in|throughout) (?:this|the|these) {KIND}(?:{MANY}|{ONE}),(?: {SEE})?",
    rf"in (?:this|the|these) {KIND}(?:{MANY}|{ONE}) {SEE}",
    rf"{SEE}(?! that\b)",
    rf"(?:(?:the|this|that) )?{KIND}{ONE} (?:(?:appears|seems) to {SHOW}|{SHOWS})\b{NOT_SEEN}",
    rf"(?:(?:the|these|those) )?{KIND}{MANY} (?:(?:appear|seem) to )?{SHOW}\b{NOT_SEEN}",
    # "A video of a storm shows houses" is a sentence of its own; a picture may hang on a wall of the clip.
    rf"(?:(?:this|the video) is )?an? {KIND}(?:video clip|video|clip|recording) (?:of|{SHOWING})\b"
    rf"(?![^.!?]*\b{SHOWS}\b)",
]
OPENING = [re.compile(rf"\s*(?:{pattern})\s*", re.IGNORECASE | re.DOTALL) for pattern in OPENINGS]
THOUGHTS = re.compile(r"\s*(?:<think>.*?</think>\s*)*(?:<think>.*)?", re.IGNORECASE | re.DOTALL)
CLOSING = re.compile(
    r"(?:^|(?<=[.!?\n]))\s*(?:let me know if|i hope (?:this|that)|feel free to|would you like me to)\b[^\n]*\s*$",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"^(?:(?:i'm|i am) (?:really |very |so )?(?:sorry|unable|not able|afraid)\b|(?:sorry|apologies|my apologies)[,.!]? "
    r"|(?:unfortunately, )?i (?:cannot|can't|can not|won't|do not|don't|am unable|apologi[sz]e)\b|as an ai\b)"
    r"|\bno (?:video|image|frame)s?\b[^.]*\b(?:provided|attached|uploaded)\b"
    r"|\bplease (?:provide|upload|share) (?:the|a|an|your|more)\b",
    re.IGNORECASE,
)
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}


class Reply(NamedTuple):
    """What a captioner answered, and why it stopped: `stop`, `length` (it was cut off) or `refusal`."""

    text: str
    finish: str = "stop"


class Failed(NamedTuple):
    """Why there is no answer: a class, whether a later call may have one, and what was found."""

    reason: str
    retryable: bool
    detail: str


class Judged(NamedTuple):
    """How a clip ended: `captioned` with a text, `refused` for a reason, or `failed` with a class."""

    status: str
    reason: str = ""
    retryable: bool = False
    text: str = ""
    detail: str = ""


def judge(answer: Reply | Failed, max_words: int) -> Judged:
    """Return the outcome of a clip for this answer; the detail of a refusal is the reply itself."""
    if isinstance(answer, Failed):
        return Judged("failed", answer.reason, answer.retryable, detail=answer.detail)
    # JSON may hold half a surrogate pair, which no file can store.
    reply = answer.text.encode(errors="replace").decode()
    # The search for boilerplate and refusals takes seconds from here on, and hours in a reply without end.
    endless = len(reply) - THOUGHTS.match(reply).end() > 2 * LETTERS * max_words
    text = "" if endless else strip_boilerplate(reply)
    reason = ""
    if answer.finish == "refusal" or REFUSAL.search(text.replace("’", "'")):
        reason = "refusal"
    elif not text and not endless:
        reason = "empty"
    elif answer.finish == "length":
        reason = "cut off"
    elif endless or len(text.split()) > max_words or len(text) > LETTERS * max_words:
        reason = "too long"
    return Judged("refused", reason, detail=reply[:2000]) if reason else Judged("captioned", text=text)


def strip_boilerplate(reply: str) -> str:
    """Return the caption in a reply: one line, without openings, closings and quotes that say nothing of the clip.

    If an opening was removed, the rest begins with a capital. A reply without an opening stays as it was written.
    """
    text = unquoted(re.sub(r"\*\*(.+?)\*\*", r"\1", reply.strip()))
    before = None
    while text != before:
        before = text
        plain = text.replace("’", "'")  # of the same length
        for opening in OPENING:
            if (found := opening.match(plain)) and found.end():
                text = text[found.end() :].lstrip(" ,:;-\n")
                text = unquoted(text[:1].upper() + text[1:])
                break
    return tidy(unquoted(CLOSING.sub("", text).strip()), "reply")


def unquoted(text: str) -> str:
    """Return a text without the quotes around the whole of it; those around its first and its last words stay."""
    close = QUOTES.get(text[:1])
    if len(text) < 2 or not text.endswith(close or " "):
        return text
    inner = text[1:-1]
    # An apostrophe stands between letters, a quote beside a word.
    inside = re.search(rf"(?<!\w){re.escape(text[0])}|{re.escape(close)}(?!\w)", inner)
    return text if inside else unquoted(inner.strip())
