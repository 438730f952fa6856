"""videodiff evaluate: sample a run on the clips of a dataset and measure the samples."""

from videodiff.verbs.evaluate.command import run as run
