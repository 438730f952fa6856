"""Caption: ask about the clips that the rules keep so far, and bring together all captions of a clip.

It comes between making and curating, as models cost more than all the rest: nothing is asked about a clip that would
be left out, and nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.books.plan import Plan
from data_prep.books.request import Caption, ClipRequest
from data_prep.caption.endpoint import Endpoint
from data_prep.caption.replies import Replies, Todo
from data_prep.caption.reply import Judged, judge
from data_prep.caption.words import check_words, score_words, with_words
from data_prep.choose.curate import Note, Rules, clips_of, decide
from data_prep.produce import place_of
from data_prep.report.progress import Progress, Step, silent

REPLIES = "replies.sqlite"
PROMPT = (
    "These are frames of one video, in order. Describe in two or three sentences what is seen: who or what, what "
    "happens, where, and how it is filmed. Describe only what is there. Do not speak of frames or of the video."
)


@dataclass(frozen=True)
class CaptionPolicy:
    """Who writes captions, of what, and which of all captions of a clip go into the shards.

    by: none, endpoint or model; origin: what the captions are called (None: the model's name); frames, side: see
    `frames.read_frames`; max_words: longer replies are refused; missing: only clips without a caption are asked about;
    give_up: requests in a row without an answer that end the phase. url ... body: see `Endpoint`; batch, revision: see
    `Model`. use: origins in the order in which their captions go into the shards (None: all, those of the metadata
    first); camera, words: see `words.score_words`.
    """

    by: str = "none"
    model: str | None = None
    origin: str | None = None
    prompt: str = PROMPT
    frames: int = 8
    side: int = 448
    max_tokens: int = 300
    max_words: int = 200
    missing: bool = False
    give_up: int = 5
    url: str = "http://localhost:8000/v1"
    key: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    attempts: int = 5
    pause: float = 1.0
    body: Mapping[str, Any] | None = None
    batch: int = 8
    revision: str = "main"
    use: Sequence[str] | None = None
    camera: bool = False
    words: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.by not in ("none", "endpoint", "model"):
            raise ValueError(f"caption.by: found {self.by!r}, expected none, endpoint or model")
        if self.by != "none" and not self.model:
            raise ValueError("caption.model: found none, expected the name of a model or its folder")
        least = min(self.frames, self.side, self.max_tokens, self.max_words, self.give_up)
        if least < 1 or not self.prompt.strip():
            raise ValueError(
                f"caption: found frames={self.frames} side={self.side} max_tokens={self.max_tokens} "
                f"max_words={self.max_words} give_up={self.give_up} and a prompt of {len(self.prompt)} letters, "
                "expected at least 1 of each"
            )
        check_words(self.words or ())

    @property
    def name(self) -> str:
        """What its captions are called."""
        return self.origin or self.settings["model"]

    def captioner(self, work: Path, timeout: float) -> Any:
        """Return who answers; a mistake in the settings is a ValueError."""
        asked = {name: getattr(self, name) for name in ("model", "prompt", "frames", "side", "max_tokens")}
        if self.by == "endpoint":
            how = {name: getattr(self, name) for name in ("url", "key", "concurrency", "timeout", "attempts", "pause")}
            return Endpoint(**asked, **how, body=self.body)
        from data_prep.caption.model import Model  # which brings transformers

        return Model(**asked, work=work, batch=self.batch, revision=self.revision, timeout=timeout)

    @property
    def settings(self) -> dict[str, Any]:
        """What its replies follow from, as far as it can be known: not the weights behind an endpoint."""
        names = ("by", "model", "prompt", "frames", "side", "max_tokens", "max_words")
        settings = {name: getattr(self, name) for name in names}
        if self.by == "endpoint":
            return settings | {"body": dict(self.body or {})}
        from data_prep.caption.model import config_hash

        here = {"model": Path(self.model).resolve().name} if Path(self.model).is_dir() else {"revision": self.revision}
        return settings | {"batch": self.batch, "config": config_hash(self.model)} | here

    @property
    def fingerprint(self) -> str:
        """A hash of what its replies follow from."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def caption_all(
    plan: Plan,
    work: Path,
    rules: Rules,
    policy: CaptionPolicy,
    retry: bool,
    timeout: float,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Ask about the clips that the rules keep and that have no answer yet; return how the clips ended.

    After `give_up` requests in a row without an answer nothing more is asked, and `stopped` says why, as where no
    request had one. Those requests are not counted as failed: it was not the clips.
    """
    captioner = policy.captioner(work, timeout)
    replies = Replies(work / REPLIES)
    number = replies.captioner(policy.fingerprint, policy.name, policy.settings)
    todo = replies.plan(number, wanted(plan, work, rules, policy.missing), getattr(captioner, "batch", 1), retry)
    answers = captioner.answers(Batches(work, todo) if policy.by == "model" else one_by_one(work, todo))
    streak, answered, counts = [], False, Counter()
    try:
        for batch in answers:
            ends = [(clip, judge(answer, policy.max_words)) for clip, answer in batch]
            if any(lost(end) for _, end in ends):
                streak.append(ends)
                if len(streak) == policy.give_up:
                    break
            else:
                replies.record(number, ends)
            if any(end.status != "failed" for _, end in ends):
                for group in streak:
                    replies.record(number, group)
                streak, answered = [], True
            counts.update(end.status for _, end in ends)
            progress(Step("caption", sum(counts.values()), todo.clips, "clips", dict(counts)))
    finally:
        answers.close()
    last = next((end for _, end in streak[-1] if lost(end)), None) if streak else None
    stopped = streak and (len(streak) == policy.give_up or (not answered and last.retryable))
    if not stopped:
        for group in streak:
            replies.record(number, group)
    found = {"origin": policy.name, **replies.counts(number), "captioner": policy.settings}
    replies.close()
    if stopped:
        asked = f"{policy.url}, model {policy.model}" if policy.by == "endpoint" else policy.model
        found["stopped"] = (
            f"caption: {asked}: found no answer to {len(streak)} requests in a row, the last for {last.reason}: "
            f"{last.detail}; {found['clips'] - found['captioned']} of {found['clips']} clips not captioned; what is "
            "done is kept, and the same command goes on from here"
        )
    return found


def lost(end: Judged) -> bool:
    """Tell whether an answer is missing for a reason that may lie with who is asked, not with the clip."""
    return end.status == "failed" and end.reason != "undecodable"


def wanted(plan: Plan, work: Path, rules: Rules, missing: bool) -> Iterator[str]:
    """Yield the ids of the clips that are kept, whether they have captions yet or not."""
    reasons, _ = decide(plan, work, rules)
    for (request, _, clip), reason in zip(clips_of(plan, work), reasons, strict=True):
        if not reason and not (missing and request.captions):
            yield clip["id"]


def one_by_one(work: Path, todo: Todo) -> Iterator[tuple[str, Path]]:
    """Yield the clips to ask about with their files."""
    return ((clip, place_of(work, clip, "mp4")) for batch in todo for clip in batch)


class Batches(Sequence):
    """The clips to ask about with their files, batch by batch."""

    def __init__(self, work: Path, todo: Todo) -> None:
        self.work, self.todo = work, todo

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, index: int) -> list[tuple[str, Path]]:
        return [(clip, place_of(self.work, clip, "mp4")) for clip in self.todo[index]]


class Captions:
    """All captions of a clip, as they go into the shards: from its metadata and by captioners."""

    def __init__(self, work: Path, policy: CaptionPolicy, known: Iterable[str] = ()) -> None:
        self.policy, path = policy, work / REPLIES
        self.replies = Replies(path) if path.is_file() else None
        self.by = self.replies.origins() if self.replies else {}
        known = {*known, *(origin for origin, _ in self.by.values())}
        for origin in policy.use or ():
            if origin not in known:
                found = ", ".join(sorted(known)) or "none"
                raise ValueError(f"caption.use: found {origin!r}, expected some of the origins of captions: {found}")

    def of(self, request: ClipRequest, clip: Note) -> list[Caption]:
        """Return the captions of a clip, the one first that is to be its txt."""
        texts = self.replies.texts(clip["id"]) if self.replies else {}
        written = [Caption(texts[number], origin) for number, (origin, _) in self.by.items() if number in texts]
        captions = [*request.captions, *written]
        if self.policy.use is not None:
            captions = [caption for origin in self.policy.use for caption in captions if caption.origin == origin]
        added = score_words(clip["scores"], self.policy.words or (), self.policy.camera)
        return [caption._replace(text=with_words(caption.text, added)) for caption in captions]

    def provenance(self, captions: Sequence[Caption]) -> dict[str, Any]:
        """Return what the json of a clip says of its captions: who wrote each, and how captioners were asked."""
        origins = [caption.origin for caption in captions]
        marks = {origin: mark for origin, mark in self.by.values() if origin in origins}
        return {"caption_origins": origins} | ({"captioners": marks} if marks else {})

    def forget(self, clip: str) -> None:
        """Remove what was answered about a clip."""
        if self.replies:
            self.replies.forget(clip)

    def close(self) -> None:
        if self.replies:
            self.replies.close()
