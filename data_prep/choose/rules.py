"""Rules: which clips are kept. A pure function of the clips and the rules: nothing is read, fetched or decoded here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data_prep.books.candidate import Candidate
from data_prep.books.request import ClipRequest
from data_prep.choose.filter import check_thresholds, filtered
from data_prep.score.duplicate import BITS, near_duplicates

DIGEST = 16
# Bytes of all captions of a clip: as JSON, with accents escaped, they take three times as many, of four MiB at most.
CAPTIONS = 2**20


@dataclass(frozen=True)
class Rules:
    """Which clips are kept.

    filter: see `filter.filtered`; near: bits of 256 in which the hashes of near duplicates differ at most, None keeps
    near duplicates; licences: those allowed, None for any; taken: ids, names and sources that are taken down.
    """

    filter: dict[str, dict[str, float]] = field(default_factory=dict)
    near: int | None = None
    licences: Sequence[str] | None = None
    require_caption: bool = False
    taken: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_thresholds(self.filter)
        if self.near is not None and not 0 <= self.near <= BITS:
            raise ValueError(f"duplicates.near: found {self.near}, expected 0 to {BITS} or null")


class Decision(NamedTuple):
    """What the rules say of all clips.

    reasons: why each clip is left out, empty if it is kept; inputs: the number of inputs for each reason, with an empty
    reason for inputs that have a kept clip; lost: spans that gave no clip.
    """

    reasons: list[str]
    inputs: dict[str, int]
    lost: int

    @property
    def kept(self) -> int:
        """How many clips are kept."""
        return self.reasons.count("")

    @property
    def left_out(self) -> dict[str, int]:
        """How many clips are left out for each reason."""
        return dict(sorted(Counter(filter(None, self.reasons)).items()))


def decide(candidates: Iterable[Candidate], rules: Rules) -> Decision:
    """Return what the rules say of all clips, given in the order of the inputs.

    An input is ok if one of its clips is kept; else it is filtered for the reason of its first clip. Of several
    duplicates the first that has a caption is kept, or else the first. Memory: 100 bytes a clip, for its hashes.
    """
    reasons, digests, hashes, firsts, lost, last = [], bytearray(), bytearray(), [], 0, None
    hashed, mute = bytearray(), bytearray()
    for number, candidate in enumerate(candidates):
        if candidate.request.id != last:
            firsts.append(number)
            lost, last = lost + candidate.lost, candidate.request.id
        reasons.append(refused(candidate, rules))
        digests += candidate.sha256[:DIGEST]
        hashes += candidate.perceptual or bytes(BITS // 8)
        hashed.append(bool(candidate.perceptual))
        mute.append(not candidate.captions)
    order = np.argsort(np.frombuffer(mute, bool), kind="stable")
    for number in repeated(order[left_in(reasons)[order]], digests):
        reasons[number] = "duplicate"
    if rules.near is not None:
        left = order[(left_in(reasons) & np.frombuffer(hashed, bool))[order]]
        table = np.frombuffer(hashes, np.uint8).reshape(-1, BITS // 8)[left]
        for number in left[near_duplicates(table, rules.near) >= 0]:
            reasons[number] = "near duplicate"
    inputs = Counter()
    for begin, end in pairwise([*firsts, len(reasons)]):
        inputs["" if "" in reasons[begin:end] else reasons[begin]] += 1
    return Decision(reasons, dict(sorted(inputs.items())), lost)


def refused(candidate: Candidate, rules: Rules) -> str:
    """Return why a clip is left out regardless of the other clips; empty if it is not."""
    if is_taken(candidate.request, rules.taken) or candidate.id in rules.taken:
        return "takedown"
    if rules.licences is not None and candidate.request.licence not in rules.licences:
        return "licence"
    try:
        found = filtered(candidate.scores, rules.filter)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    if found:
        return found.reason
    if sum(len(caption.text.encode()) for caption in candidate.captions) > CAPTIONS:
        return "captions too long"
    return "no caption" if rules.require_caption and not candidate.captions else ""


def is_taken(request: ClipRequest, taken: frozenset[str]) -> bool:
    """Tell whether a request is taken down: by its id, its source, its video's id or its clip's name."""
    return not taken.isdisjoint({request.id, request.source, request.parent, request.name} - {""})


def left_in(reasons: Sequence[str]) -> np.ndarray:
    """Return a mask of the clips without a reason to leave them out."""
    return np.fromiter((not reason for reason in reasons), bool, len(reasons))


def repeated(left: np.ndarray, digests: bytearray) -> np.ndarray:
    """Return those of the clips `left` whose digest an earlier one of them has."""
    found = np.frombuffer(digests, f"V{DIGEST}")[left]
    return np.delete(left, np.unique(found, return_index=True)[1])
