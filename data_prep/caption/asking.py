"""Caption: ask about the clips that the rules keep so far, and bring together all captions of a clip.

This phase runs between making and curating, because models cost more than all other work: it asks about no clip that
the rules leave out, and about no clip twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.books.work_folder import REPLIES, clip_file
from data_prep.caption.endpoint import Answers
from data_prep.caption.policy import CaptionPolicy
from data_prep.caption.replies import Replies, Todo
from data_prep.caption.reply import Judged, judge
from data_prep.choose.rules import decide
from data_prep.preparation import Preparation
from data_prep.report.progress import Advance, Progress
from data_prep.report.summary import CaptionCounts
from videodiff.words import count_text

# How the clips of one request ended, by id.
Ends = list[tuple[str, Judged]]


def caption(preparation: Preparation) -> None:
    """Ask about the clips that the rules keep and that have no answer yet, if captions are asked for."""
    policy, work = preparation.settings.caption, preparation.work
    if policy.by == "none":
        return
    captioner = policy.captioner(work, preparation.settings.processes.timeout)
    with closing(Replies(work / REPLIES)) as replies:
        number = replies.captioner(policy.fingerprint, policy.name, policy.settings)
        ids = wanted(preparation, policy.missing)
        todo = replies.todo(number, ids, getattr(captioner, "batch", 1), preparation.retries)
        answers = captioner.answers(Batches(work, todo) if policy.by == "model" else one_by_one(work, todo))
        with closing(answers):
            unanswered = ask(answers, replies, number, policy, partial(report, preparation.progress, todo.clips))
        counts = replies.counts(number)
    found = CaptionCounts(policy.name, *counts, captioner=policy.settings)
    if unanswered:
        found.stopped = why_stopped(unanswered, policy, found)
    preparation.summary.captions = found


def report(progress: Progress, clips: int, counts: Counter) -> None:
    """Tell how many clips were asked about."""
    progress(Advance("caption", sum(counts.values()), clips, "clips", dict(counts)))


def ask(
    answers: Iterable[Answers], replies: Replies, number: int, policy: CaptionPolicy, tell: Callable[[Counter], None]
) -> list[Ends]:
    """Record the answers; if captioning has to stop, return the last requests, which had no answer.

    It stops after `give_up` requests in a row without an answer, and at the end if no request had an answer. These
    requests are not recorded as failed: the clips are not at fault.
    """
    streak, answered, counts = [], False, Counter()
    for batch in answers:
        ends = [(clip, judge(answer, policy.max_words)) for clip, answer in batch]
        if any(lost(end) for _, end in ends):
            streak.append(ends)
            if len(streak) == policy.give_up:
                return streak
        else:
            replies.record(number, ends)
        if any(end.status != "failed" for _, end in ends):
            for group in streak:
                replies.record(number, group)
            streak, answered = [], True
        counts.update(end.status for _, end in ends)
        tell(counts)
    if streak and not answered and last_lost(streak).retryable:
        return streak
    for group in streak:
        replies.record(number, group)
    return []


def last_lost(streak: Sequence[Ends]) -> Judged:
    """Return the first missing answer of the last request."""
    return next(end for _, end in streak[-1] if lost(end))


def why_stopped(streak: Sequence[Ends], policy: CaptionPolicy, found: CaptionCounts) -> str:
    """Return one line that says why captioning stopped."""
    asked = f"{policy.url}, model {policy.model}" if policy.by == "endpoint" else policy.model
    last = last_lost(streak)
    return (
        f"caption: {asked}: found no answer to {count_text(len(streak), 'request')} in a row, the last for "
        f"{last.reason}: {last.detail}; {found.clips - found.captioned} of {count_text(found.clips, 'clip')} not "
        "captioned; what is done is kept, run the same command again to continue"
    )


def lost(end: Judged) -> bool:
    """Tell whether the captioner, not the clip, may be the reason for a missing answer."""
    return end.status == "failed" and end.reason != "undecodable"


def wanted(preparation: Preparation, missing: bool) -> Iterator[str]:
    """Yield the ids of the clips that are kept, whether they have captions yet or not."""
    decision = decide(preparation.candidates(), replace(preparation.rules, require_caption=False))
    for candidate, reason in zip(preparation.candidates(), decision.reasons, strict=True):
        if not reason and not (missing and candidate.request.captions):
            yield candidate.id


def one_by_one(work: Path, todo: Todo) -> Iterator[tuple[str, Path]]:
    """Yield the clips to ask about with their files."""
    return ((clip, clip_file(work, clip, "mp4")) for batch in todo for clip in batch)


class Batches(Sequence):
    """The clips to ask about with their files, batch by batch."""

    def __init__(self, work: Path, todo: Todo) -> None:
        self.work, self.todo = work, todo

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, index: int) -> list[tuple[str, Path]]:
        return [(clip, clip_file(self.work, clip, "mp4")) for clip in self.todo[index]]
