"""A preparation: what the phases of one call share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.books.candidate import Candidate
from data_prep.books.clip_index import ClipIndex
from data_prep.books.ledger import Ledger
from data_prep.books.plan import Plan
from data_prep.books.request import BadInput, ClipRequest
from data_prep.choose.rules import Rules
from data_prep.rate.ratings import Ratings, with_ratings
from data_prep.report.progress import Progress, silent
from data_prep.report.summary import Summary
from data_prep.settings import Settings
from videodiff.data.storage.listing import Passed


@dataclass
class Inputs:
    """The items of the source; passed: counts its files that are no inputs, while the items are read."""

    items: Iterator[ClipRequest | BadInput]
    passed: Passed


@dataclass
class Preparation:
    """The settings of a call, what is open while it lasts, and what its phases found so far.

    work: the work folder; root: folder or URL below which the videos lie; rules: those of the settings, with all that
    was ever taken down; clips: what was made so far; ratings: scores by models, None without models; inputs: None where
    nothing is to be read.
    """

    settings: Settings
    work: Path
    root: str
    rules: Rules
    plan: Plan
    ledger: Ledger
    clips: ClipIndex
    ratings: Ratings | None = None
    inputs: Inputs | None = None
    progress: Progress = silent
    summary: Summary = field(default_factory=Summary)

    @property
    def makes(self) -> bool:
        """Whether clips are made in this call."""
        return self.settings.source.path is not None or self.retries

    @property
    def retries(self) -> bool:
        """Whether this call works only on requests that failed."""
        return self.settings.retry is not None

    def candidates(self) -> Iterator[Candidate]:
        """Yield all clips made so far in the order of the inputs, with the scores by models among their scores."""
        return with_ratings(self.clips, self.ratings)


# A phase writes its results to `summary`; it does nothing if the settings do not ask for it.
Phase = Callable[[Preparation], None]
