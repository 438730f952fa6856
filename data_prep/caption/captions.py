"""All captions of a clip: from its metadata and from captioners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.books.candidate import Candidate
from data_prep.books.request import Caption
from data_prep.books.work_folder import REPLIES
from data_prep.caption.policy import CaptionPolicy
from data_prep.caption.replies import Replies
from data_prep.caption.words import score_words, with_words


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
                raise ValueError(f"caption.use: found {origin!r}, expected some of the captions' origins: {found}")

    def of(self, candidate: Candidate) -> list[Caption]:
        """Return the captions of a clip; the first one becomes its txt."""
        texts = self.replies.texts(candidate.id) if self.replies else {}
        written = [Caption(texts[number], origin) for number, (origin, _) in self.by.items() if number in texts]
        captions = [*candidate.request.captions, *written]
        if self.policy.use is not None:
            captions = [caption for origin in self.policy.use for caption in captions if caption.origin == origin]
        added = score_words(candidate.scores, self.policy.words or (), self.policy.camera)
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
