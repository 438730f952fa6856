"""What the command line prints: names and texts from outside cannot steer the terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Control characters but the line end and the tab, half pairs, and what turns the direction of text.
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return text with what a terminal would act on escaped; line ends and tabs stay."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def in_line(text: object) -> str:
    """Return text in one line, safe to print."""
    return printable(" ".join(str(text).split()))


def say(line: object, stream: TextIO | None = None) -> None:
    """Print a line that may hold names and texts from outside, also where the terminal knows few characters.

    A line end in it is escaped, as a name could go on with a line of ours. A reader that has seen enough, such as head,
    ends no work: what comes later is not shown.
    """
    stream, text = stream or sys.stdout, printable(line).replace("\n", "\\n")
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        # Python writes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say_lines(text: str) -> None:
    """Print the lines of a text; what they hold from outside has no line ends."""
    for line in text.split("\n"):
        say(line)


@contextmanager
def no_warnings_logged() -> Iterator[None]:
    """Let nothing log warnings: around the import of a library whose warnings concern parts that are not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
