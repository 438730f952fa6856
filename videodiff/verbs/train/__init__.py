"""videodiff train."""

from videodiff.verbs.train.command import run as run
