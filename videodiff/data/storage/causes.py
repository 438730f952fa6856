"""What an error says, and what it came from."""

from __future__ import annotations

from collections.abc import Iterator


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def chain(error: BaseException, handled: bool = True) -> Iterator[BaseException]:
    """Yield an error and what it came from, each once: a chain may be a circle (`raise error from error`).

    Python and yt-dlp record causes in different attributes. handled: an error without a cause came from the one that
    was being handled when it was raised. This is a guess: a library may raise while it handles a missing key.
    """
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting.append(found.__cause__ or (found.__context__ if handled else None))
            waiting.append(getattr(found, "cause", None))
            caught = getattr(found, "exc_info", None)
            waiting += caught[1:2] if isinstance(caught, tuple) else ()


def is_of_all_ranks(error: BaseException) -> bool:
    """Return whether all ranks have agreed on an error, or on one of its causes."""
    return any(getattr(one, "of_all_ranks", False) for one in chain(error))
