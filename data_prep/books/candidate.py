"""A clip as the rules see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from data_prep.books.request import Caption, ClipRequest


class Candidate(NamedTuple):
    """A clip in the work folder, with what the rules ask of it.

    request: what it was made for; frames: how many it has; sha256: of its mp4; perceptual: the hash of its pictures,
    empty where none was taken; lost: spans of the request that gave no clip; captions: those that it would go into the
    shards with, those of the source unless other ones were put in.
    """

    request: ClipRequest
    id: str
    span: tuple[float, float]
    frames: int
    sha256: bytes
    perceptual: bytes
    lost: int
    scores: Mapping[str, float | None]
    captions: tuple[Caption, ...]
