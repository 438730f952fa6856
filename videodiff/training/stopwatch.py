"""Where the wall time of a run goes: every second is on one account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# What a run spends its time on. `restart` is all that lies between a checkpoint and the first step after it of the run
# that went on from there: the work that was lost, the wait for machines, the start.
ACCOUNTS = ("compute", "data", "checkpoint", "validation", "samples", "start", "restart")
# The accounts that are no training: a rate of training leaves them out.
APART = ("validation", "samples")


class Stopwatch:
    """Count the seconds of each account; it runs from the moment it is made, on `start`.

    The time of day, which may be set, counts between two processes only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, day: Callable[[], float] = time.time) -> None:
        self.clock, self.day, self.account, self.since = clock, day, "start", clock()
        self.seconds = dict.fromkeys(ACCOUNTS, 0.0)

    def enter(self, account: str) -> None:
        """Count from now on on another account."""
        now = self.clock()
        self.seconds[self.account] += now - self.since
        self.account, self.since = account, now

    @contextmanager
    def during(self, account: str) -> Iterator[None]:
        """Count what happens within on another account."""
        before = self.account
        self.enter(account)
        try:
            yield
        finally:
            self.enter(before)

    def state(self) -> dict[str, float]:
        """Return the seconds of all accounts and the time of day, for a checkpoint."""
        self.enter(self.account)
        return {**self.seconds, "at": self.day()}

    def trained_since(self, state: Mapping[str, float]) -> float:
        """Return the seconds of training since a state of this clock, without those of the accounts `APART`."""
        now = self.state()
        return sum(now[account] - state[account] for account in ACCOUNTS if account not in APART)

    def resume(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint: what has passed since then is a restart."""
        self.seconds = {account: float(state.get(account, 0.0)) for account in ACCOUNTS}
        self.seconds["restart"] += max(0.0, self.day() - float(state["at"]))
        self.account, self.since = "restart", self.clock()

    def shares(self) -> dict[str, float]:
        """Return the share of each account in the time of the run, 0 to 1."""
        self.enter(self.account)
        total = sum(self.seconds.values())
        return {account: seconds / total if total else 0.0 for account, seconds in self.seconds.items()}
