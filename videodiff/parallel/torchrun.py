"""torchrun with one line per failure that names the rank: `python -m videodiff.parallel.torchrun`, same arguments."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping, Sequence

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from videodiff.parallel.launcher import AGAIN, LOST, SAID, how_it_ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the processes of this node and wait for them; return the exit status."""
    # The line holds what the agent logs of a failure; the processes have loggers of their own.
    logging.disable(logging.ERROR)
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        if (ended := cause(error.failures)) is not None:
            say(f"{ended}; the others are ended")
        return status(error.failures)
    except SignalException as error:
        return 128 + error.sigval
    except (RendezvousError, DistError, OSError, ValueError) as error:
        say(f"torchrun: {' '.join(str(error).split())[:400] or type(error).__name__}")
        return 1
    return 0


def status(failures: Mapping[int, ProcessFailure]) -> int:
    """Return the exit status of a node: first an error of a rank, then a lost rank, then a signal."""
    left = {failure.exitcode for failure in failures.values()}
    return SAID if SAID in left else AGAIN if left == {AGAIN} else LOST


def cause(failures: Mapping[int, ProcessFailure]) -> str | None:
    """Return which rank failed first and how, None if it has printed its own error.

    The agent knows the time of a failure only to the second. But a rank that lost another one has printed its own
    error, and a rank that the agent ended has SIGTERM.
    """
    silent = [(rank, failure) for rank, failure in failures.items() if failure.exitcode not in (SAID, AGAIN, LOST)]
    first = [pair for pair in silent if pair[1].exitcode != -signal.SIGTERM]
    if not first and len(silent) < len(failures):
        return None
    rank, failure = min(first or silent, key=lambda pair: pair[1].timestamp)
    return how_it_ended(rank, failure.pid, failure.exitcode)


def say(line: str) -> None:
    """Print an error."""
    # The progress line of a dead rank lacks a line end.
    print(f"\nvideodiff: error: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
