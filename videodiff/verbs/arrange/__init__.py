"""videodiff arrange: sampled clips in the folder that a benchmark reads."""

from videodiff.verbs.arrange.command import run as run
