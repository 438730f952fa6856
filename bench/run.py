"""Measure the speed of each subject as ratios within one run: to peers, and to the limit of the machine.

python bench/run.py [subject ...] [--rounds 5] [--threads N] [--tiny]

Prints a table for each subject, writes bench/out/<subject>.json, and appends the table to bench/RESULTS.md. A subject
is a file of bench/subjects with a title and a function `measure`; --tiny shrinks all work and records nothing.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import torch
from subjects.harness import Settings, record

from videodiff.machine import keep_freed_memory

SUBJECTS = ("denoiser", "step", "sampling", "encoding", "checkpoint", "compile", "loader", "fp8")


def main() -> None:
    """Measure the subjects that the command line names, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"some of {', '.join(SUBJECTS)}; none: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if unknown := set(asked.subjects) - set(SUBJECTS):
        parser.error(f"found the subjects {', '.join(sorted(unknown))}, expected some of {', '.join(SUBJECTS)}")
    torch.set_num_threads(asked.threads)
    # As `videodiff train` does, for all that is compared.
    keep_freed_memory()
    settings = Settings(1 if asked.tiny else asked.rounds, asked.tiny)
    command = " ".join(["python bench/run.py", *sys.argv[1:]])
    for name in asked.subjects or SUBJECTS:
        subject = importlib.import_module(f"subjects.{name}")
        record(name, subject.TITLE, list(subject.measure(settings)), command, asked.tiny)


if __name__ == "__main__":
    main()
