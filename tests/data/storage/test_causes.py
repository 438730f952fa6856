"""What an error came from, however libraries record it."""

from __future__ import annotations

from videodiff.data.storage.causes import chain


def test_the_chain_of_an_error_ends_where_it_is_a_circle() -> None:
    error = RuntimeError("lost")
    error.__cause__ = error
    assert list(chain(error)) == [error]
    cause, other = ValueError("cause"), OSError("other")
    cause.__cause__, other.__cause__ = other, cause
    assert list(chain(cause)) == [cause, other]


def test_the_error_that_was_handled_counts_where_it_is_asked_for() -> None:
    missing = KeyError("a")
    try:
        raise missing
    except KeyError:
        try:
            raise ValueError("found no a")
        except ValueError as error:
            found = error
    assert list(chain(found)) == [found, missing]
    assert list(chain(found, handled=False)) == [found]


def test_causes_in_the_attributes_of_libraries_are_followed() -> None:
    outer, inner, last = RuntimeError("download failed"), RuntimeError("no answer"), OSError("reset")
    outer.exc_info, inner.cause = (RuntimeError, inner, None), last
    assert list(chain(outer, handled=False)) == [outer, inner, last]
    outer.exc_info, inner.cause = True, "reset"
    assert list(chain(outer)) == [outer]
